"""How a step's batch is found on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb.loop._carry import Carry, Inputs
from jaxcb.loop._order import draw


class Layout(NamedTuple):
    """How batches are found. Resident rows are gathered; stacked batches are indexed; single ones given."""

    kind: str  # "resident", "stacked" or "single"
    rows: int  # rows of resident data
    batch_size: int  # rows of a full batch
    shuffle: bool
    train_remainder: bool

    @property
    def full(self) -> int:
        """Full batches in an epoch of resident rows."""
        return self.rows // self.batch_size

    @property
    def remainder(self) -> int:
        """Rows of the smaller last batch, 0 for none."""
        return self.rows % self.batch_size if self.train_remainder and self.kind == "resident" else 0

    def new_order(self, inputs: Inputs, epoch: Any) -> Any:
        """This epoch's order of the resident rows: a function of the data's key and the epoch."""
        if self.kind != "resident" or not self.shuffle:
            return None

        def one(key: Array) -> Array:
            return draw(key, epoch, self.rows)

        return jax.vmap(one)(inputs.key) if jnp.ndim(inputs.key) else one(inputs.key)

    def fetch(self, inputs: Inputs, carry: Carry, *, remainder: bool = False) -> tuple[Any, int]:
        """Returns the next batch and its rows."""
        data = inputs.data
        if self.kind == "single":
            return data, rows_in(data)
        if self.kind == "stacked":
            index = inputs.numbers.batch_index(carry)
            batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), data)
            return batch, rows_in(batch)
        rows = self.remainder if remainder else self.batch_size
        start = carry.cursor * self.batch_size
        if carry.order is None:
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows), data), rows
        index = jax.lax.dynamic_slice_in_dim(carry.order, start, rows, axis=-1)
        return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data), rows


def rows_in(batch: Any) -> int:
    """Returns the rows of a batch."""
    return jax.tree.leaves(batch)[0].shape[0]
