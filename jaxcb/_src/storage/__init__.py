"""Files on disk: the record of a run's files, exported checkpoints, and Orbax."""
