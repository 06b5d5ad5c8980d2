"""`largest_batch_size`: found from compiled programs, not by failing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcb as jc
from jaxcb._src.sweep.largest_batch import _search

ROWS = jax.ShapeDtypeStruct((100_000, 16), jnp.float32)
PARAMS = {"w": jnp.ones((16, 16))}


def loss_fn(params, x):
    return jnp.mean(jnp.tanh(jnp.tanh(x @ params["w"]) @ params["w"]) ** 2)


def find(memory, **changes):
    how = {"optimizer": optax.adam, "learning_rate": 0.1, "resident": False, "memory": memory}
    return jc.search.largest_batch_size(PARAMS, loss_fn, ROWS, **(how | changes))


@settings(max_examples=60)
@given(
    each=st.integers(1, 5_000),
    fixed=st.integers(0, 10**6),
    room=st.integers(0, 10**8),
    multiple=st.sampled_from([1, 8, 24]),
    rows=st.integers(24, 10**5),
    rough=st.integers(0, 3),
)
def test_the_search_ends_close_below_the_largest_that_fits(each, fixed, room, multiple, rows, rough):
    """On any memory that rises with the rows, also with steps in it."""
    needs = lambda n: fixed + each * n + rough * 1000 * (n // 100)  # noqa: E731
    memory, measured = needs(multiple) + room, {}

    def fits(size):
        assert size % multiple == 0
        assert size not in measured, "no size is compiled twice"
        measured[size] = needs(size)
        return measured[size] <= memory

    assert fits(multiple)
    found = _search(fits, measured, memory, multiple, rows)
    largest = max(n for n in range(multiple, rows + 1, multiple) if needs(n) <= memory)
    assert needs(found) <= memory
    assert largest - found <= max(multiple, found // 32)
    assert len(measured) <= 60


def test_what_is_found_is_what_the_compiled_step_needs():
    found = find(2_000_000, multiple_of=8)
    assert found.needed == found.measured[found.batch_size] <= found.memory == 2_000_000
    assert found.batch_size % 8 == 0
    assert len(found.measured) <= 8
    more = [needed for size, needed in found.measured.items() if size > found.batch_size]
    assert all(needed > found.memory for needed in more)
    # beside a step compiled by hand
    state = jc.TrainState.create(params=PARAMS, tx=jc.adjustable_lr(optax.adam, learning_rate=0.1))
    batch = jax.ShapeDtypeStruct((found.batch_size, 16), jnp.float32)
    stats = jax.jit(jc.Step(loss_fn), donate_argnums=0).lower(state, batch).compile().memory_analysis()
    by_hand = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    np.testing.assert_allclose(found.needed, by_hand, rtol=0.05)


def test_all_that_is_kept_counts():
    plain, small = find(2_000_000), find(500_000)
    assert small.batch_size < plain.batch_size / 3
    best = find(2_000_000, callbacks=[jc.EarlyStopping("loss", restore_best_weights=True)])
    assert best.batch_size <= plain.batch_size
    data = find(10_000_000, resident=True)
    assert data.needed > ROWS.size * 4
    assert find(10**12).batch_size == 100_000  # all rows
    assert find(None).memory > 10**8


def test_models_of_any_library_stay_as_they_are():
    net = nnx.Linear(16, 1, rngs=nnx.Rngs(0))
    before = np.asarray(net.kernel[...])
    x = np.zeros((64, 16), np.float32)
    found = jc.search.largest_batch_size(net, lambda m, b: jnp.mean(m(b) ** 2), x, optimizer=optax.sgd(0.1))
    assert found.batch_size == 64
    np.testing.assert_array_equal(net.kernel[...], before)


def test_what_does_not_fit_is_said_with_numbers():
    with pytest.raises(MemoryError, match=r"a step with 1 rows needs [\d,]+ bytes, and there are 100\."):
        find(100)
    with pytest.raises(MemoryError, match=r"bytes, 6,400,000 of them the data"):
        find(10_000, resident=True)
    with pytest.raises(jc.errors.DataError, match="train_data is a list, expected a pytree of arrays"):
        jc.search.largest_batch_size(PARAMS, loss_fn, [np.zeros((2, 16))], optimizer=optax.sgd(0.1))
