"""What runs on the device: loop state, hooks, steps and epochs as compiled programs."""
