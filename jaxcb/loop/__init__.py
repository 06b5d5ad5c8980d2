"""`Loop`: the compiled loop around a step."""

from jaxcb.loop._loop import Loop
from jaxcb.loop._result import Result, last_result
from jaxcb.loop._run import Run

__all__ = ["Loop", "Result", "Run", "last_result"]
