"""The training loop: its configuration, how it is built and run, and its result."""
