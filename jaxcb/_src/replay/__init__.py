"""Replay: simulates callbacks on a recorded run."""
