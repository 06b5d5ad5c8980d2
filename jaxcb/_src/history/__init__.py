"""What a run reported, in memory and read back from files."""
