"""Actions: what a callback can ask for, as data."""
