"""What the programs of a run know of its training data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._src.data.sources import draw


class BatchLayout(NamedTuple):
    """How batches are found in data: gathered from resident rows, indexed in a stack, or given one by one."""

    kind: str  # "resident", "stacked", "single", or "none" for a run without data
    rows: int  # rows of resident data; 0 otherwise
    batch_size: int  # rows of a full batch
    shuffle: bool
    train_remainder: bool

    @property
    def full(self) -> int:
        """Full batches in an epoch of resident rows."""
        return self.rows // self.batch_size

    @property
    def remainder(self) -> int:
        """Rows of the smaller last batch; 0 if there is none."""
        return self.rows % self.batch_size if self.train_remainder and self.kind == "resident" else 0

    def new_order(self, key: Any, epoch: Any) -> Any:
        """Returns the order of resident rows in an epoch, a function of key (or keys) and epoch. Traced."""
        if self.kind != "resident" or not self.shuffle:
            return None

        def one(key: Array) -> Array:
            return draw(key, epoch, self.rows)

        return jax.vmap(one)(key) if jnp.ndim(key) else one(key)


class DataSpec(NamedTuple):
    """Training data as programs know it: known before the executor, and the devices of a population, are chosen.

    It has no arrays and no iterators besides the key, so that it may be kept as long as the programs.

    Attributes:
        example: shapes and dtypes of a batch, with the rows of all processes.
        layout: how a looped program finds batches.
        epoch_len: steps of an epoch, UNBOUNDED if unknown.
        key: PRNG key of the order of resident rows, or one per member; None for a stream.
    """

    example: Any
    layout: BatchLayout
    epoch_len: int
    key: Array | None = None

    def layout_for(self, *, stacked: bool) -> BatchLayout:
        """Returns how a program finds batches.

        Args:
            stacked: whether it gets the batches of a dispatch as one stack (looped executor) or one by one (stepped).
        """
        if self.layout.kind in ("resident", "none"):
            return self.layout
        return self.layout._replace(kind="stacked" if stacked else "single")


def rows_in(batch: Any) -> int:
    """Returns the rows of a batch; 1 for no data."""
    return next((leaf.shape[0] for leaf in jax.tree.leaves(batch)), 1)
