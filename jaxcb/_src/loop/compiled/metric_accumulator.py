"""A window of steps, reduced: sample-weighted means, and metrics that merge themselves."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._src.core.metrics import is_mergeable
from jaxcb._src.utils.exact import add_product, quotient
from jaxcb._src.utils.pytree import Struct, select, static


class MetricAccumulator(Struct):
    """Compensated sums: the mean of a constant is that constant, and a long epoch's is as exact as a short one's.

    All sums lie in one vector, since each array that a compiled loop updates costs something at every step.

    Attributes:
        total: sum of the rows, and of each value times its rows, float32 (..., width); under the values' names and
            shapes, which tell a resumed run what they were sums of.
        error: what rounding has added to each sum so far, in the same form; the sum is `total - error`.
        merged: name -> what has merged so far, of metrics that merge themselves.
        shapes: name and shape of each value in `total`.
    """

    total: dict[str, Any]
    error: dict[str, Any]
    merged: dict[str, Any]
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = static()

    @classmethod
    def empty(cls, values: dict[str, Any], members: int | None = None) -> "MetricAccumulator":
        """A window for values of these shapes; a population's counts rows a member, since each stops alone."""
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
        # two buffers, since a window is donated
        total, error = ({label: jnp.zeros((*lead, width), jnp.float32)} for _ in range(2))
        return cls(total, error, merged, shapes)

    def cleared(self) -> "MetricAccumulator":
        """The same window with nothing in it."""
        return jax.tree.map(jnp.zeros_like, self)

    def add(self, values: dict[str, Any], rows: int) -> "MetricAccumulator":
        """Adds one step's values, each the mean over `rows` rows, or itself a metric of them.

        Nothing is lost of constants, integers and halves (see `add_product`), as far as float32 reaches: the sum over
        the rows is below 2**128, and its last bit above 2**-126.
        """
        (label, old), (error,) = *self.total.items(), self.error.values()
        lead = old.shape[:-1]
        parts = [values[name].astype(jnp.float32).reshape(*lead, -1) for name, _ in self.shapes]
        new = jnp.concatenate([jnp.ones((*lead, 1), jnp.float32), *parts], axis=-1)
        total, rest = add_product(old, -error, new, rows)
        merge, merged = _each(lambda old, new: old.merge(new), self._members), {}
        for name, before in self.merged.items():
            merged[name] = select(self.any(), merge(before, values[name]), values[name])  # the first one meets nothing
        return self.replace(total={label: total}, error={label: -rest}, merged=merged)

    def any(self) -> Array:
        """Whether anything was added, bool (), or one a member."""
        return self._sums[..., 0] > 0

    def means(self) -> dict[str, Array]:
        """The means so far, and what has merged; NaN where nothing was added."""
        sums, (error,), start, out = self._sums, self.error.values(), 1, {}
        means = quotient(sums, -error, sums[..., :1], -error[..., :1])
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
    """The values as arrays: metrics that merge are computed."""
    compute = _each(lambda metric: jnp.asarray(metric.compute()), members)
    return {name: compute(v) if is_mergeable(v) else v for name, v in values.items()}


def _each(fn: Any, members: bool) -> Any:
    return jax.vmap(fn) if members else fn
