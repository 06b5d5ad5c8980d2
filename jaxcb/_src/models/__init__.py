"""Adapters between the models of each library and pytrees of arrays, one module per library."""
