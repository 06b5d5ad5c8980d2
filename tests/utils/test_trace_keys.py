"""Keys of traces: equal for functions that were made again, and only for equal programs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcb._src.utils.program_key import NoProgramKey, trace_key

X = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def _with_rule(forward, backward):
    @jax.custom_vjp
    def fn(x):
        return forward * x

    fn.defvjp(lambda x: (fn(x), None), lambda _, g: (backward * g,))
    return fn


def _scaled(constant):
    return lambda x: x * constant


def _large(value):
    constant = np.full((600, 600), value, np.float32)  # more than a key has a copy of
    return lambda x: x[0, 0] * constant


def _update(x, **how):
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(**how))
    return tx.update({"w": x}, tx.init({"w": x}), {"w": x})


# name -> makes a function anew
MADE = {
    "relu": lambda: lambda x: jax.nn.relu(x),
    "its gradient": lambda: jax.grad(lambda x: jax.nn.relu(x).sum()),
    "gelu": lambda: lambda x: jax.nn.gelu(x),
    "silu": lambda: lambda x: jax.nn.silu(x),
    "softmax": lambda: lambda x: jax.nn.softmax(x),
    "softmax of columns": lambda: lambda x: jax.nn.softmax(x, axis=0),
    "a rule": lambda: _with_rule(2.0, 2.0),
    "another function with that rule": lambda: _with_rule(3.0, 2.0),
    "gradient by a rule": lambda: jax.grad(lambda x: _with_rule(2.0, 2.0)(x).sum()),
    "gradient by another rule": lambda: jax.grad(lambda x: _with_rule(2.0, 3.0)(x).sum()),
    "constant": lambda: _scaled(np.full((4, 4), 2.0, np.float32)),
    "other constant": lambda: _scaled(np.full((4, 4), 3.0, np.float32)),
    "large constant": lambda: _large(2.0),
    "other large constant": lambda: _large(3.0),
    "constant on the device": lambda: _scaled(jnp.full((4, 4), 2.0)),
    "constant of another shape": lambda: _scaled(np.full((1, 4), 2.0, np.float32)),
    "integer": lambda: lambda x: x * 2,
    "negative zero": lambda: lambda x: x + jnp.float32(-0.0),
    "zero": lambda: lambda x: x + jnp.float32(0.0),
    "minus one": lambda: lambda x: x + jnp.float32(-1.0),
    "minus two": lambda: lambda x: x + jnp.float32(-2.0),
    "half precision": lambda: lambda x: x.astype(jnp.bfloat16),
    "reshaped": lambda: lambda x: x.reshape(2, 8),
    "reshaped otherwise": lambda: lambda x: x.reshape(8, 2),
    "scan": lambda: lambda x: jax.lax.scan(lambda c, row: (c + row, c), x[0], x),
    "scan backwards": lambda: lambda x: jax.lax.scan(lambda c, row: (c + row, c), x[0], x, reverse=True),
    "while": lambda: lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x),
    "while to another bound": lambda: lambda x: jax.lax.while_loop(lambda x: x.sum() < 8, lambda x: x + 1, x),
    "branch": lambda: lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x),
    "branches exchanged": lambda: lambda x: jax.lax.cond(x[0, 0] > 0, jnp.cos, jnp.sin, x),
    "checkpoint": lambda: jax.grad(jax.checkpoint(lambda x: jnp.sin(x).sum())),
    "sort": lambda: lambda x: jnp.sort(x),
    "sort of columns": lambda: lambda x: jnp.sort(x, axis=0),
    "scatter": lambda: lambda x: x.at[jnp.array([0, 2])].add(1.0),
    "scatter elsewhere": lambda: lambda x: x.at[jnp.array([0, 3])].add(1.0),
    "product": lambda: lambda x: x @ x,
    "precise product": lambda: lambda x: jnp.matmul(x, x, precision="highest"),
    "random": lambda: lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
    "random of another seed": lambda: lambda x: x + jax.random.normal(jax.random.key(1), x.shape),
    "solve": lambda: lambda x: jnp.linalg.solve(x, x),
    "convolution": lambda: lambda x: jnp.convolve(x[0], x[1]),
    "calls": lambda: lambda x: jax.jit(jnp.sin)(jax.jit(jnp.cos)(x)),
    "calls exchanged": lambda: lambda x: jax.jit(jnp.cos)(jax.jit(jnp.sin)(x)),
    "update": lambda: lambda x: _update(x, learning_rate=0.1),
    "update at another rate": lambda: lambda x: _update(x, learning_rate=0.2),
    "order of results": lambda: lambda x: (jnp.sin(x), jnp.cos(x)),
    "results exchanged": lambda: lambda x: (jnp.cos(x), jnp.sin(x)),
    "barrier": lambda: lambda x: jax.lax.optimization_barrier(x),
    "mapped": lambda: jax.vmap(lambda row: jnp.sort(row)[0]),
}


def _traced(name):
    return jax.jit(MADE[name]()).trace(X)


def _key(traced):
    return trace_key(traced.jaxpr.jaxpr, traced.jaxpr.consts)


@pytest.mark.parametrize("name", MADE)
def test_a_function_that_is_made_again_has_the_same_key(name):
    one, two = (_key(_traced(name)) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)


def test_equal_keys_are_those_of_equal_programs():
    keys = {name: _key(_traced(name)) for name in MADE}
    texts = {name: _traced(name).lower().as_text() for name in MADE}
    for one, two in itertools.combinations(MADE, 2):
        assert (keys[one] == keys[two]) <= (texts[one] == texts[two]), (one, two)
    assert len(set(keys.values())) == len(MADE)


@pytest.mark.parametrize("size", [4, 600])
def test_an_array_of_numpy_that_was_changed_in_place_is_another_constant(size):
    constant = np.ones((size, size), np.float32)
    keys = []
    for value in (1.0, 2.0, 1.0):
        constant[-1, -1] = value
        keys.append(_key(jax.jit(lambda x: x[0, 0] * constant).trace(X)))
    assert keys[0] == keys[2] != keys[1]


def test_a_rule_of_differentiation_counts_only_where_it_is_used():
    one, two = (_key(jax.jit(_with_rule(2.0, backward)).trace(X)) for backward in (2.0, 3.0))
    assert one == two


@pytest.mark.parametrize("other", ["x64", "precision", "threefry"])
def test_settings_of_jax_that_change_a_trace_change_its_key(other):
    context = {
        "x64": lambda: jax.enable_x64(True),
        "precision": lambda: jax.default_matmul_precision("bfloat16"),
        "threefry": lambda: jax.threefry_partitionable(False),
    }[other]

    def fn(x):
        return x @ x + jax.random.uniform(jax.random.key(0), x.shape)

    usual = _key(jax.jit(fn).trace(X))
    with context():
        assert _key(jax.jit(fn).trace(X)) != usual


@pytest.mark.parametrize(
    "calls",
    [
        lambda x: jax.pure_callback(np.sin, x, x),
        lambda x: jax.debug.print("{x}", x=x),
        lambda x: jax.jit(lambda y: jax.pure_callback(np.sin, y, y))(x),
    ],
)
def test_a_program_that_calls_python_has_no_key(calls):
    with pytest.raises(NoProgramKey):
        _key(jax.jit(calls).trace(X))
