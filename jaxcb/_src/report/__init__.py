"""Recorded runs: reading, explaining, comparing and reporting them."""
