"""Plots of curves, with matplotlib."""
