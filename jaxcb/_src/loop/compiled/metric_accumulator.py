"""Accumulation of metrics over steps: sample-weighted means, and metrics with their own merge."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._src.core.metrics import is_mergeable
from jaxcb._src.utils.exact import add_product, quotient
from jaxcb._src.utils.pytree import Struct, select, static
from jaxcb._src.utils.xla import computed_once


class MetricAccumulator(Struct):
    """Compensated sums of the metrics of an epoch.

    The compensation makes the mean of a constant exactly that constant, and keeps the precision of long epochs. All
    sums share one vector, since each array that a compiled loop updates adds a cost to every step.

    Attributes:
        total: sum of the rows, and of each value times its rows, float32 (..., width). Its only key lists names and
            shapes of the values, so that a checkpoint with other values is detected.
        error: accumulated rounding error of each sum, same structure; the exact sum is `total - error`.
        merged: name -> merged value, for metrics with their own merge.
        shapes: name and shape of each value in `total`.
    """

    total: dict[str, Any]
    error: dict[str, Any]
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
        # two separate buffers, since both are donated
        total, error = ({label: jnp.zeros((*lead, width), jnp.float32)} for _ in range(2))
        return cls(total, error, merged, shapes)

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
        """
        (label, old), (error,) = *self.total.items(), self.error.values()
        lead = old.shape[:-1]
        parts = [values[name].astype(jnp.float32).reshape(*lead, -1) for name, _ in self.shapes]
        new = jnp.concatenate([jnp.ones((*lead, 1), jnp.float32), *parts], axis=-1)
        total, rest = add_product(old, -error, new, rows)
        merge, merged = _each(lambda old, new: old.merge(new), self._members), {}
        for name, before in self.merged.items():
            # first value: nothing to merge with
            merged[name] = select(self.any(), merge(before, values[name]), values[name])
        return self.replace(total={label: total}, error={label: -rest}, merged=merged)

    def any(self) -> Array:
        """Returns whether anything was added, bool () or (members,)."""
        return self._sums[..., 0] > 0

    def means(self) -> dict[str, Array]:
        """Returns the means, and the computed values of merged metrics; NaN if nothing was added."""
        sums, (error,), start, out = self._sums, self.error.values(), 1, {}
        means = quotient(sums, -error, sums[..., :1], -error[..., :1])
        if not self._members:
            means = computed_once(means, sums[0] >= 0, sums)
        for name, shape in self.shapes:
            end = start + math.prod(shape)
            out[name] = means[..., start:end].reshape(*sums.shape[:-1], *shape)
            start = end
        return out | computed(self.merged, self._members)

    @property
    def _sums(self) -> Array:
        (sums,) = self.total.values()
        return sums

    @property
    def _members(self) -> bool:
        return self._sums.ndim > 1


def computed(values: dict[str, Any], members: bool) -> dict[str, Array]:
    """Returns the values as arrays, calling `compute` on metrics with their own merge."""
    compute = _each(lambda metric: jnp.asarray(metric.compute()), members)
    return {name: compute(v) if is_mergeable(v) else v for name, v in values.items()}


def _each(fn: Any, members: bool) -> Any:
    return jax.vmap(fn) if members else fn
