"""Adapters: one a model library, between its models and pytrees of arrays."""
