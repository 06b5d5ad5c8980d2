"""Several processes: how they start and how they agree."""
