"""Writers of tracking services."""
