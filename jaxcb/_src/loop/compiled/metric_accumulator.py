"""Accumulation of metrics over steps: sample-weighted means, and metrics with their own merge."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._src.core.metrics import is_mergeable
from jaxcb._src.utils.exact import add_product, quotient
from jaxcb._src.utils.pytree import Struct, cast_like, select, static


class MetricAccumulator(Struct):
    """Compensated sums of the metrics of an epoch.

    The compensation makes the mean of a constant exactly that constant, and keeps the precision of long epochs. All
    sums and their errors share one array, since each array that a step computes is at least one kernel.

    Attributes:
        sums: sum of the rows, and of each value times its rows, then the accumulated rounding error of each of these,
            float32 (..., 2, width). The exact sum is `sums[..., 0, :] - sums[..., 1, :]`. Its only key lists names and
            shapes of the values, so that a checkpoint with other values is detected.
        merged: name -> merged value, for metrics with their own merge.
        shapes: name and shape of each value in `sums`.
    """

    sums: dict[str, Any]
    merged: dict[str, Any]
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = static()

    @classmethod
    def empty(cls, values: dict[str, Any], members: int | None = None) -> "MetricAccumulator":
        """Returns an empty accumulator for values of these shapes.

        Args:
            values: name -> shape, or a metric with its own merge.
            members: size of the member axis; rows are counted per member since each member can stop alone.
        """
        lead = () if members is None else (members,)
        plain = {name: v for name, v in values.items() if not is_mergeable(v)}
        shapes = tuple((name, tuple(v.shape[len(lead) :])) for name, v in plain.items())
        label = ", ".join(f"{name}{shape}" for name, shape in shapes)
        width = 1 + sum(math.prod(shape) for _, shape in shapes)
        merged = {
            name: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), v)
            for name, v in values.items()
            if name not in plain
        }
        return cls({label: jnp.zeros((*lead, 2, width), jnp.float32)}, merged, shapes)

    def cleared(self) -> "MetricAccumulator":
        """Returns the accumulator with all sums set to zero."""
        return jax.tree.map(jnp.zeros_like, self)

    def add(self, values: dict[str, Any], rows: int) -> "MetricAccumulator":
        """Adds the values of one step.

        Sums of constants, integers and halves are exact (see `add_product`) within the range of float32: the sum over
        the rows must stay below 2**128, and its last bit above 2**-126.

        Args:
            values: name -> mean over the rows, or a metric with its own merge.
            rows: number of rows.

        Raises:
            ValueError: for a value of another shape than before.
        """
        (label,) = self.sums
        old, error = self._pair
        lead = old.shape[:-1]
        for name, shape in self.shapes:
            found = values[name].shape[len(lead) :]
            if found != shape:
                raise ValueError(
                    f"the metric {name!r} has shape {found} in a batch of {rows} rows, and {shape} in another one. "
                    "Metrics of different shapes have no mean: return its mean over the rows."
                )
        parts = [values[name].astype(jnp.float32).reshape(*lead, -1) for name, _ in self.shapes]
        new = jnp.concatenate([jnp.ones((*lead, 1), jnp.float32), *parts], axis=-1)
        total, rest = add_product(old, -error, new, rows)
        is_total = np.array([True, False]).reshape(*(1 for _ in lead), 2, 1)
        # a select, since XLA makes one kernel of it with all that it selects from; of a concatenation it makes three
        sums = jnp.where(is_total, total[..., None, :], -rest[..., None, :])
        merge, merged = _each(lambda old, new: old.merge(new), self._members), {}
        for name, before in self.merged.items():
            # first value: nothing to merge with
            both = cast_like(merge(before, values[name]), before, f"merge() of the metric {name!r}", error=TypeError)
            merged[name] = select(self.any(), both, values[name])
        return self.replace(sums={label: sums}, merged=merged)

    def any(self) -> Array:
        """Returns whether anything was added, bool () or (members,)."""
        return self._sums[..., 0, 0] > 0

    def means(self) -> dict[str, Array]:
        """Returns the means, and the computed values of merged metrics; NaN if nothing was added."""
        total, error = self._pair
        means = quotient(total, -error, total[..., :1], -error[..., :1])
        return self._by_name(means) | computed(self.merged, self._members)

    def _by_name(self, values: Any) -> dict[str, Any]:
        """Splits a vector of the width of the sums."""
        start, out = 1, {}
        for name, shape in self.shapes:
            end = start + math.prod(shape)
            out[name], start = values[..., start:end].reshape((*values.shape[:-1], *shape)), end
        return out

    def with_computed(self) -> "MetricAccumulator":
        """Returns the accumulator with the computed values of merged metrics, for `means_on_host`."""
        return self.replace(merged=computed(self.merged, self._members))

    def means_on_host(self) -> dict[str, np.ndarray]:
        """Returns the means to show during an epoch. Takes fetched arrays, and computes in float64.

        On the device the division would be compiled into every program that returns a status.
        """
        total, error = self._pair
        sums = total.astype(np.float64) - error
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (sums / sums[..., :1]).astype(np.float32)
        return self._by_name(means) | self.merged

    @property
    def _sums(self) -> Array:
        (sums,) = self.sums.values()
        return sums

    @property
    def _pair(self) -> tuple[Array, Array]:
        """The sums and their errors, float32 (..., width)."""
        return self._sums[..., 0, :], self._sums[..., 1, :]

    @property
    def _members(self) -> bool:
        return self._sums.ndim > 2


def computed(values: dict[str, Any], members: bool) -> dict[str, Array]:
    """Returns the values as arrays, calling `compute` on metrics with their own merge."""
    compute = _each(lambda metric: jnp.asarray(metric.compute()), members)
    return {name: compute(v) if is_mergeable(v) else v for name, v in values.items()}


def _each(fn: Any, members: bool) -> Any:
    return jax.vmap(fn) if members else fn
