"""Inspection of a traced step: parameters, floating-point operations, graph."""
