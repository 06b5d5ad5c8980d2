"""A traced function as a graph of named operations."""
