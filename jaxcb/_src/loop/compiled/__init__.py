"""The device side of the loop: state, hooks, steps and epochs as compiled programs."""
