"""Runs the tests in `eight` in processes that simulate eight devices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxcb as jc

EIGHT = Path(__file__).parent / "eight"
ALL = sorted(path.name for path in EIGHT.glob("test_*.py"))
STEPS = ("test_layouts.py", "test_collectives.py")
LONG = (
    "test_collectives.py",
    "test_given_arrays.py",
    "test_layouts.py",
    "test_metadata.py",
    "test_outside.py",
    "test_resume.py",
    "test_sweep.py",
)  # those with tests that are marked so


@pytest.mark.slow
@pytest.mark.parametrize("steps", [True, False], ids=["steps", "others"])
def test_with_eight_devices(steps):
    run([name for name in ALL if (name in STEPS) == steps], "not long")  # few processes, since each starts slowly


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_with_eight_devices_at_length(name):
    run([name], "long")


def run(names, mark):
    root = Path(jc.__file__).parent.parent
    own = "--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=240"
    env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {own}", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = str(root)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", mark]
    command += [str(EIGHT / name) for name in names]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
