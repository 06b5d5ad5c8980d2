"""Replay: what callbacks would have done on a recorded run."""
