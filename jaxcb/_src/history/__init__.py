"""The metrics that a run reported, in memory and read from files."""
