"""How batches lie on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb.loop._order import draw

FOREVER = np.iinfo(np.int32).max  # a number of steps that is not known, or has no limit


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

    def new_order(self, key: Any, epoch: Any) -> Any:
        """This epoch's order of the resident rows: a function of the data's key, or keys, and the epoch; traced."""
        if self.kind != "resident" or not self.shuffle:
            return None

        def one(key: Array) -> Array:
            return draw(key, epoch, self.rows)

        return jax.vmap(one)(key) if jnp.ndim(key) else one(key)


def rows_in(batch: Any) -> int:
    """Returns the rows of a batch."""
    return jax.tree.leaves(batch)[0].shape[0]
