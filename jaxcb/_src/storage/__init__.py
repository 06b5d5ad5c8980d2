"""Files on the disk: what a run owns, exported checkpoints, and Orbax."""
