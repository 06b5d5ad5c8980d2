"""Streams: what a run reports, moment by moment, and Hypothesis strategies that make them."""

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
    """What a run reports: at each moment one validation, which closes its epoch or stands in its middle.

    Attributes:
        values: name -> one float32-representable number a moment, None where it was not reported.
        closes_epoch: for each moment whether it ends its epoch; the last one does.
        steps: updates done at each moment, rising.

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
        """The epoch of each moment, from 0, int32 (moments,)."""
        closed = np.cumsum(self.closes_epoch) - np.asarray(self.closes_epoch)
        return closed.astype(np.int32)

    def carried(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the last value of `name` at each moment, float32, and the step of its report, int32."""
        value, reported, values, steps = float("nan"), -1, [], []
        for step, new in zip(self.steps, self.values[name], strict=True):
            if new is not None:
                value, reported = new, step
            values.append(value)
            steps.append(reported)
        return np.asarray(values, np.float32), np.asarray(steps, np.int32)

    def stacked(self) -> Metrics:
        """Returns all moments as one `Metrics` whose arrays have a leading axis of time, for `lax.scan`."""
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
        """Returns the moments one by one, as a hook sees them."""
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
    """Numbers of every kind: special ones, any float32, one constant, few with many ties."""
    number = st.one_of(st.sampled_from(_NASTY), st.floats(width=32))
    constant = number.map(lambda x: [x] * size)
    ties = st.lists(number, min_size=1, max_size=2).flatmap(lambda pool: _list(st.sampled_from(pool), size))
    return st.one_of(_list(number, size), constant, ties)


def _plain(size: int) -> st.SearchStrategy[list[float]]:
    """Numbers that no rounding makes equal or unequal."""

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
    """Hypothesis strategy for what a run can report.

    Several epochs with validations at their ends and in their middle; NaN, infinities, denormal and negative
    numbers, ties, constants and values that are not reported.

    Args:
        draw: given by Hypothesis.
        names: the metrics.
        min_size: fewest moments.
        max_size: most moments.
        ties: False keeps to finite numbers of ordinary size that differ by more than rounding does.
        unreported: whether a metric may be missing at a moment.

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
