"""A window of steps, reduced: sample-weighted means, and metrics that merge themselves."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._merging import is_mergeable
from jaxcb._struct import Struct, select


class Window(Struct):
    """Compensated (Kahan) sums, so that a long epoch's mean is as exact as a short one's.

    Attributes:
        total: name -> sum of value times rows, float32, or what has merged so far; under "" the sum of the rows.
        error: what rounding has taken from each sum so far.
    """

    total: dict[str, Any]
    error: dict[str, Any]

    @classmethod
    def empty(cls, values: dict[str, Any], members: int | None = None) -> "Window":
        """A window for values of these shapes; a population's counts rows a member, since each stops alone."""
        sums = {name: jnp.zeros(v.shape, jnp.float32) for name, v in values.items() if not is_mergeable(v)}
        sums[""] = jnp.zeros(() if members is None else (members,), jnp.float32)
        merging = {
            n: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), v) for n, v in values.items() if n not in sums
        }
        return cls(sums | merging, jax.tree.map(jnp.zeros_like, sums))  # two buffers each, since a window is donated

    def cleared(self) -> "Window":
        """The same window with nothing in it."""
        return jax.tree.map(jnp.zeros_like, self)

    def add(self, values: dict[str, Any], rows: Any) -> "Window":
        """Adds one step's values, each the mean over `rows` rows, or itself a metric of them."""
        total, error = {}, {}
        for name in self.error:
            value = jnp.full_like(self.total[""], rows) if not name else values[name].astype(jnp.float32) * rows
            compensated = value - self.error[name]
            total[name] = self.total[name] + compensated
            lost = (total[name] - self.total[name]) - compensated
            error[name] = jnp.where(jnp.isfinite(lost), lost, 0.0)
        for name in self.total.keys() - self.error.keys():
            merged = _each(lambda old, new: old.merge(new), self._members)(self.total[name], values[name])
            total[name] = select(self.any(), merged, values[name])  # the first one meets nothing
        return Window(total, error)

    def any(self) -> Array:
        """Whether anything was added, bool (), or one a member."""
        return self.total[""] > 0

    def means(self) -> dict[str, Array]:
        """The means so far, and what has merged; NaN where nothing was added."""
        rows, out = self.total[""], {}
        for name, total in self.total.items():
            if name in self.error and name:
                out[name] = total / rows.reshape(rows.shape + (1,) * (total.ndim - rows.ndim))
            elif name:
                out[name] = computed({name: total}, self._members)[name]
        return out

    @property
    def _members(self) -> bool:
        return self.total[""].ndim > 0


def computed(values: dict[str, Any], members: bool) -> dict[str, Array]:
    """The values as arrays: metrics that merge are computed."""
    compute = _each(lambda metric: jnp.asarray(metric.compute()), members)
    return {name: compute(v) if is_mergeable(v) else v for name, v in values.items()}


def _each(fn: Any, members: bool) -> Any:
    return jax.vmap(fn) if members else fn
