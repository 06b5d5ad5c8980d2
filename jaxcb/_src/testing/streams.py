"""Streams: the metrics that a run reports over time, and Hypothesis strategies for them."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import hypothesis.strategies as st
import numpy as np

from jaxcb._src.core.metrics import Metrics

_NASTY = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1.0000001,  # the next float32 after 1
    float("nan"),
    float("inf"),
    float("-inf"),
    1.1754944e-38,  # the smallest normal number
    -1e-45,  # the smallest denormal one
    3.4028235e38,  # the largest finite one
)


@dataclasses.dataclass(frozen=True)
class Stream:
    """The metrics that a run reports: each row is one validation, at the end of an epoch or within it.

    Attributes:
        values: name -> one float32-representable number per row, None if it was not reported.
        closes_epoch: for each row whether it ends its epoch; the last one must.
        steps: updates done at each row, increasing.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> stream = jc.testing.Stream({"val_loss": (0.5, None)}, (True, True), (10, 20))
        >>> [(int(m.epoch), float(m["val_loss"]), bool(m.fresh("val_loss"))) for m in stream.metrics()]
        [(0, 0.5, True), (1, 0.5, False)]
    """

    values: Mapping[str, tuple[float | None, ...]]
    closes_epoch: tuple[bool, ...]
    steps: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def epochs(self) -> np.ndarray:
        """Returns the epoch of each row, from 0, int32 (rows,)."""
        closed = np.cumsum(self.closes_epoch) - np.asarray(self.closes_epoch)
        return closed.astype(np.int32)

    def carried(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the last value of `name` at each row, float32, and the step of its report, int32."""
        value, reported, values, steps = float("nan"), -1, [], []
        for step, new in zip(self.steps, self.values[name], strict=True):
            if new is not None:
                value, reported = new, step
            values.append(value)
            steps.append(reported)
        return np.asarray(values, np.float32), np.asarray(steps, np.int32)

    def stacked(self) -> Metrics:
        """Returns all rows as one `Metrics` whose arrays have a leading time axis, for `lax.scan`."""
        carried = {name: self.carried(name) for name in self.values}
        return Metrics._make(
            values={name: value for name, (value, _) in carried.items()},
            reported={name: step for name, (_, step) in carried.items()},
            step=np.asarray(self.steps, np.int32),
            epoch=self.epochs(),
            total_steps=np.full(len(self), self.steps[-1], np.int32),
            closes_epoch=np.asarray(self.closes_epoch, bool),
            host={},
        )

    def metrics(self) -> list[Metrics]:
        """Returns one `Metrics` per row, as a hook sees it."""
        stack = self.stacked()
        fields = ("step", "epoch", "total_steps", "closes_epoch")
        return [
            Metrics(
                {name: value[i] for name, value in stack.values.items()},
                reported={name: step[i] for name, step in stack.reported.items()},
                **{name: getattr(stack, name)[i] for name in fields},
            )
            for i in range(len(self))
        ]


def _wild(size: int) -> st.SearchStrategy[list[float]]:
    """Returns numbers of every kind: special ones, any float32, constants, few values with many ties."""
    number = st.one_of(st.sampled_from(_NASTY), st.floats(width=32))
    constant = number.map(lambda x: [x] * size)
    ties = st.lists(number, min_size=1, max_size=2).flatmap(lambda pool: _list(st.sampled_from(pool), size))
    return st.one_of(_list(number, size), constant, ties)


def _plain(size: int) -> st.SearchStrategy[list[float]]:
    """Returns numbers that no rounding makes equal or unequal."""

    def draw(seed: int) -> list[float]:
        return np.random.default_rng(seed).normal(size=size).astype(np.float32).tolist()

    return st.integers(0, 2**32 - 1).map(draw)


def _list(elements: st.SearchStrategy[Any], size: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(elements, min_size=size, max_size=size)


@st.composite
def streams(
    draw: st.DrawFn,
    names: Iterable[str] = ("loss", "val_loss"),
    *,
    min_size: int = 1,
    max_size: int = 8,
    ties: bool = True,
    unreported: bool = True,
) -> Stream:
    """Returns a Hypothesis strategy for the metrics that a run can report.

    Streams have several epochs with validations at their ends and within them; NaN, infinities, denormal and negative
    numbers, ties, constants and unreported values.

    Args:
        draw: passed by Hypothesis.
        names: the metrics.
        min_size: minimum number of rows.
        max_size: maximum number of rows.
        ties: False for finite numbers of ordinary size only, which differ by more than rounding does.
        unreported: whether a metric may be missing in a row.

    Returns:
        A strategy of `Stream`.

    Example:
        >>> import hypothesis, jaxcb.testing
        >>> @hypothesis.settings(max_examples=5, database=None)
        ... @hypothesis.given(jaxcb.testing.streams(["loss"]))
        ... def every_stream_ends_an_epoch(stream):
        ...     assert stream.closes_epoch[-1]
        >>> every_stream_ends_an_epoch()
    """
    size = draw(st.integers(min_size, max_size))
    values = {}
    for name in sorted(names):
        series = draw(_wild(size) if ties else _plain(size))
        known = draw(_list(st.booleans(), size)) if unreported and draw(st.booleans()) else [True] * size
        values[name] = tuple(x if k else None for x, k in zip(series, known, strict=True))
    closes = [*draw(_list(st.booleans(), size - 1)), True]
    steps = np.cumsum(draw(_list(st.integers(1, 3), size)))
    return Stream(values, tuple(closes), tuple(int(s) for s in steps))
