"""The tests in `eight` need eight devices, which a process has or has not from its start; see test_eight_devices.py."""

import os

collect_ignore = [] if "device_count=8" in os.environ.get("XLA_FLAGS", "") else ["eight"]
