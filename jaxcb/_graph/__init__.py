"""A traced function as a graph of named operations, for people to look at."""

from jaxcb._graph._draw import Node, draw
from jaxcb._graph._inputs import input_names

__all__ = ["Node", "draw", "input_names"]
