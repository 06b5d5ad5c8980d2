"""What the tests of training with optax share."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def as_optax_promotes() -> Iterator[None]:
    """optax multiplies arrays of different ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield
