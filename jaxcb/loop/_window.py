"""The sample-weighted means of a window of steps."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._struct import Struct


class Window(Struct):
    """Compensated (Kahan) sums, so that a long epoch's mean is as exact as a short one's.

    Attributes:
        total: name -> sum of value times rows, float32; and under "" the sum of the rows.
        error: what rounding has taken from each sum so far.
    """

    total: dict[str, Any]
    error: dict[str, Any]

    @classmethod
    def empty(cls, values: dict[str, Any]) -> "Window":
        """A window for values of these shapes."""
        zeros = {name: jnp.zeros(v.shape, jnp.float32) for name, v in values.items()} | {"": jnp.zeros((), jnp.float32)}
        return cls(zeros, jax.tree.map(jnp.zeros_like, zeros))  # two buffers each, since a window is donated

    def cleared(self) -> "Window":
        """The same window with nothing in it."""
        return jax.tree.map(jnp.zeros_like, self)

    def add(self, values: dict[str, Array], rows: Any) -> "Window":
        """Adds one step's values, each the mean over `rows` rows."""
        added = {name: v.astype(jnp.float32) * rows for name, v in values.items()}
        added[""] = jnp.full_like(self.total[""], rows)
        total, error = {}, {}
        for name, value in added.items():
            compensated = value - self.error[name]
            total[name] = self.total[name] + compensated
            lost = (total[name] - self.total[name]) - compensated
            error[name] = jnp.where(jnp.isfinite(lost), lost, 0.0)
        return Window(total, error)

    def means(self) -> dict[str, Array]:
        """The means so far; NaN where nothing was added."""
        rows = self.total[""]
        return {
            name: total / rows.reshape(rows.shape + (1,) * (total.ndim - rows.ndim))
            for name, total in self.total.items()
            if name
        }
