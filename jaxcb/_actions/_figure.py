"""`Figure`: a picture that the host draws."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxcb._actions._request import RequestAction
from jaxcb._actions._series import SeriesAction
from jaxcb._struct import static


class Figure(SeriesAction, RequestAction):
    """A picture in TensorBoard that a function draws on the host, with matplotlib or as an array.

    Attributes:
        tag: its name.
        draw: `draw(values)`, given the arrays by name, returns a matplotlib figure, or an array as `Image` takes it.
            It is called by the thread that trains: make the figure with `matplotlib.figure.Figure()`.
        values: name -> array, what it is drawn of.
        of: in place of `values`: what is drawn by its path, known only when the action fires.

    Example:
        >>> import jaxcb as jc, numpy as np
        >>> bars = lambda values: np.stack([values["share"]] * 3)
        >>> jc.Figure("bars", bars, {"share": np.array([0.25, 0.75])}).draw({"share": np.zeros(2)}).shape
        (3, 2)
    """

    tag: str = static()
    draw: Callable[[dict[str, Any]], Any] = static()
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.draw):
            raise TypeError(f"Figure {self.tag!r} takes a function of its values, got a {type(self.draw).__name__}.")
        if self.values and self.of is not None:
            raise ValueError(f"Figure {self.tag!r} takes values, or of= with what to look at; one of two.")

    def answer(self, arrays: dict[str, Any]) -> tuple["Figure"]:
        return (self.replace(values=self.chosen(arrays), of=None, where="**"),)
