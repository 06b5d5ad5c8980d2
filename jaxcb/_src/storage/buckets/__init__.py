"""Runs in a bucket: requests, the lease, the form of the objects, the mirror of a folder, and downloads."""
