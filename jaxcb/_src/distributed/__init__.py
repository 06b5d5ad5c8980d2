"""Runs of several processes: initialization and coordination."""
