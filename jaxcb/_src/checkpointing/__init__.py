"""Checkpoints of a run: when they are written, their format, and how a run resumes."""
