"""Sums and quotients against fractions, as XLA compiles them with and without its optimizations."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcb._src.loop.compiled.metric_accumulator import MetricAccumulator
from jaxcb._src.utils.exact import add_product

WIDTH = 8
COUNTS = (1, 3, 7, 41, 64, 4095, 4096, 5000, 100_003, 2**25 + 1)
# what rounding does to the sums must be within float32, and XLA flushes what is below it
normal = st.floats(2.0**-90, 2.0**90, width=32) | st.floats(-(2.0**90), -(2.0**-90), width=32) | st.just(0.0)
halves = st.integers(-(2**15), 2**15).map(lambda n: n / 2)
levels = pytest.mark.parametrize("level", [0, 2])


@functools.cache
def compiled(level):
    options = {"xla_backend_optimization_level": level}
    add = jax.jit(lambda w, v, rows: w.add({"a": v}, rows), static_argnums=2, compiler_options=options)
    return add, jax.jit(lambda w: w.means()["a"], compiler_options=options)


def mean(level, batches):
    """Of `(values, rows)`, each value many times in an array."""
    add, means = compiled(level)
    window = MetricAccumulator.empty({"a": jnp.zeros(WIDTH)})
    for values, rows in batches:
        window = add(window, jnp.asarray(values, jnp.float32), rows)
    return np.asarray(means(window))


def exact(batches):
    rows = sum(n for _, n in batches)
    columns = zip(*(np.asarray(v, np.float32).tolist() for v, _ in batches), strict=True)
    return [sum(Fraction(v) * n for v, (_, n) in zip(c, batches, strict=True)) / rows for c in columns]


@levels
@given(st.lists(normal, min_size=WIDTH, max_size=WIDTH), st.lists(st.sampled_from(COUNTS), min_size=1, max_size=5))
def test_the_mean_of_a_constant_is_that_constant(level, values, counts):
    np.testing.assert_array_equal(mean(level, [(values, n) for n in counts]), np.asarray(values, np.float32))


@levels
@given(
    st.lists(
        st.tuples(st.lists(halves, min_size=WIDTH, max_size=WIDTH), st.sampled_from(COUNTS[:-1])),
        min_size=1,
        max_size=5,
    )
)
def test_the_mean_of_integers_and_halves_is_rounded_once(level, batches):
    # a fraction of such numbers is no tie between two float32, and to float64 it is rounded far from any
    np.testing.assert_array_equal(mean(level, batches), np.float32([float(f) for f in exact(batches)]))


@levels
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(2.0**-20, 2.0**20, width=32), min_size=WIDTH, max_size=WIDTH), st.sampled_from(COUNTS)
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_mean_is_within_half_of_its_last_digit(level, batches):
    for got, true in zip(mean(level, batches).tolist(), exact(batches), strict=True):
        assert abs(Fraction(got) - true) <= Fraction(float(np.spacing(np.float32(true)))) * Fraction(50_001, 100_000)


def test_a_long_run_of_a_constant():
    """Far beyond what the pair holds exactly: 2**40 rows."""
    value, window = np.float32(0.1), MetricAccumulator.empty({"a": jnp.zeros(WIDTH)})
    add = jax.jit(lambda w: jax.lax.fori_loop(0, 2**12, lambda _, w: w.add({"a": jnp.full(WIDTH, value)}, 2**28), w))
    assert (add(window).means()["a"] == value).all()


@levels
def test_what_is_not_finite_stays_what_it_is(level):
    inf, nan = np.inf, np.nan
    odd = np.array(0x7F800001, np.uint32).view(np.float32)  # a NaN by its last bit only
    first = np.array([inf, -inf, inf, nan, odd, 1.0, 1.0, 0.0], np.float32)
    then = np.array([1.0, 1.0, -inf, 1.0, 1.0, inf, 3.0, -0.0], np.float32)
    expected = [inf, -inf, nan, nan, nan, inf, 2.0, 0.0]
    np.testing.assert_array_equal(mean(level, [(first, 41), (then, 41)]), expected)


def test_nothing_added_has_no_mean():
    assert np.isnan(np.asarray(MetricAccumulator.empty({"a": jnp.zeros(WIDTH)}).means()["a"])).all()


@given(st.lists(st.integers(-(2**23), 2**23), min_size=1, max_size=6), st.sampled_from(COUNTS[:-2]))
def test_sums_of_integers_are_exact(values, count):
    total = rest = jnp.zeros(1)
    for value in values:
        total, rest = add_product(total, rest, jnp.float32([value]), count)
    assert Fraction(float(total[0])) + Fraction(float(rest[0])) == sum(values) * count
