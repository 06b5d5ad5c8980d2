"""`FlatJit` is `jax.jit`, except that JAX keeps nothing of its arguments and results."""

import gc
import weakref
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from jaxcb._src.utils.flat_jit import FlatJit, eval_shape
from jaxcb._src.utils.pytree import Struct, static


class Tagged(Struct):
    """A value with an object of the user in its structure."""

    x: Any
    tag: Any = static(default=None)


LEAVES = st.tuples(st.sampled_from([(), (2,), (2, 3)]), st.sampled_from(["float32", "int32", "bool"])).map(
    lambda form: np.ones(form[0], form[1])
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
        st.tuples(inner, st.none()),
        st.builds(Tagged, inner, st.sampled_from(["one", "two"])),
    ),
    max_leaves=4,
)


@given(TREES, TREES)
def test_it_computes_what_jit_computes(first, second):
    def fn(a, b):
        return {"both": (b, a), "sum": sum((jnp.sum(x) for x in jax.tree.leaves((a, b))), jnp.float32(0))}

    flat, known = FlatJit(fn), jax.jit(fn)
    assert jax.tree.structure(flat(first, second)) == jax.tree.structure(known(first, second))
    assert jax.tree.leaves(jax.tree.map(np.array_equal, flat(first, second), known(first, second))).count(False) == 0
    assert eval_shape(flat, first, second) == jax.eval_shape(fn, first, second)
    assert str(flat.trace(first, second).jaxpr.in_avals) == str(known.trace(first, second).jaxpr.in_avals)


def test_results_may_depend_on_shapes_and_structures():
    traced = []

    def fn(x):
        traced.append(x.x.shape)
        return Tagged(x.x + 1, x.x.shape) if x.tag is None else {x.tag: x.x}

    flat = FlatJit(fn)
    for _ in range(2):
        assert flat(Tagged(jnp.zeros(2))).tag == (2,)
        assert flat(Tagged(jnp.zeros(3))).tag == (3,)
        assert list(flat(Tagged(jnp.zeros(3), "a"))) == ["a"]
        with jax.disable_jit():
            assert flat(Tagged(jnp.zeros(4))).tag == (4,)
    assert [shape for shape in traced if shape != (4,)] == [(2,), (3,), (3,)]


def test_an_error_names_the_function_and_the_argument():
    def fn(state, batch):
        if batch["x"][0] > 0:
            return state
        return batch

    with pytest.raises(jax.errors.TracerBoolConversionError, match=r"fn at .*test_flat_jit\.py(.|\n)*batch\['x'\]"):
        FlatJit(fn)(jnp.zeros(2), {"x": jnp.zeros(2)})


class Held:
    """An object of the user, such as an optimizer."""


def use_once(place, use):
    """Uses a function that an object of the user belongs to; returns a weak reference to the object."""
    held = Held()

    def fn(x):
        found = held if place != "argument" else None
        return Tagged(x.x + 1, found if place == "result" else None)

    given, flat = Tagged(jnp.zeros(3), held if place == "argument" else None), FlatJit(fn)
    if use == "call":
        flat(given)
    elif use == "trace":
        flat.trace(given)
    else:
        jax.jit(lambda x: flat(Tagged(x, given.tag)).x)(given.x)
    return weakref.ref(held)


@pytest.mark.parametrize("place", ["argument", "result", "closure"])
@pytest.mark.parametrize("use", ["call", "trace", "inside"])
def test_jax_keeps_no_object_of_the_user(place, use):
    known = use_once(place, use)
    gc.collect()
    assert known() is None
