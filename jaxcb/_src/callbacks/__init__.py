"""The built-in callbacks, one per file."""
