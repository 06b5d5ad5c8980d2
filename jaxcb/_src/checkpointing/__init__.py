"""A run's own checkpoints: when they are written, how, and how a run resumes from one."""
