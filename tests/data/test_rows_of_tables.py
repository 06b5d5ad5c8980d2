"""The order of an epoch's rows: each once, drawn alike everywhere, and fairly."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcb._src.data.sources import draw, drawn, key_of


@settings(max_examples=12, deadline=None)
@given(rows=st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 5000])), epoch=st.integers(0, 3))
def test_each_row_comes_once_and_the_host_draws_what_the_device_does(rows, epoch):
    key = key_of(7)
    order = drawn(key, epoch, rows)
    np.testing.assert_array_equal(np.sort(order), np.arange(rows))
    np.testing.assert_array_equal(order, draw(key, epoch, rows))


def test_epochs_seeds_and_members_have_orders_of_their_own():
    keys = jax.vmap(lambda seed: jax.random.fold_in(key_of(0), seed))(np.arange(3))
    orders = [jax.vmap(lambda key, e=e: draw(key, e, 100))(keys) for e in range(2)]
    assert len({tuple(row.tolist()) for order in orders for row in order}) == 6
    np.testing.assert_array_equal(orders[1][2], drawn(keys[2], 1, 100))


@pytest.mark.parametrize("rows", [3, 4])
def test_all_orders_are_equally_likely(rows):
    epochs = 6000
    orders = jax.jit(jax.vmap(lambda epoch: draw(key_of(3), epoch, rows)))(np.arange(epochs))
    _, counts = np.unique(np.asarray(orders), axis=0, return_counts=True)
    kinds = len(counts)
    assert kinds == {3: 6, 4: 24}[rows]
    chi_square = np.sum((counts - epochs / kinds) ** 2) / (epochs / kinds)
    assert chi_square < 2.5 * (kinds - 1)  # its mean is one less than there are kinds


def test_neighbours_part_as_often_as_chance_has_it():
    """Rows that lie side by side do so again in an order once in a while, in either direction: as often as chance."""
    rows, epochs = 2048, 200
    orders = np.asarray(jax.jit(jax.vmap(lambda epoch: draw(key_of(5), epoch, rows)))(np.arange(epochs)))
    steps = np.diff(orders, axis=1)
    for direction in (1, -1):  # about one an order
        assert abs(np.sum(steps == direction) / epochs - 1) < 0.3
    assert abs(np.mean(orders[:, 0]) / (rows / 2) - 1) < 0.15
