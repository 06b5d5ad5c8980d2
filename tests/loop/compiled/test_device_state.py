"""The loop state as a vector of numbers and arrays: packing loses nothing, on the host and in a program."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import jaxcb as jc
from jaxcb._src.loop.compiled.device_state import DeviceState, StateForm, StatePacking
from jaxcb._src.loop.compiled.state import MetricShapes, initial_state

NUMBERS = {
    "int": st.integers(-(2**31), 2**31 - 1).map(np.int32),
    "uint": st.integers(0, 2**32 - 1).map(np.uint32),
    "float": st.floats(width=32).map(np.float32),
    "bool": st.booleans().map(np.bool_),
    "half": st.floats(width=16).map(np.float16),  # has an array of its own
}


def state_of(numbers):
    train = jc.TrainState.create(params={"w": jnp.ones((2, 3))}, controls={"c": 0.5})
    callbacks = {"own": {name: jnp.asarray(x) for name, x in numbers.items()}, "vector": jnp.arange(3)}
    return initial_state(train, callbacks, MetricShapes({}, {}, {"loss": jnp.zeros(())}, None), None)


def bits(tree):
    def one(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()

    return [(jax.tree_util.keystr(path), one(x)) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


@given(st.fixed_dictionaries(NUMBERS))
def test_the_host_gets_back_what_it_has_packed(numbers):
    carry = state_of(numbers)
    live = DeviceState.of(carry)
    assert bits(live.carry()) == bits(carry)
    assert len(live.leaves) < len(jax.tree.leaves(carry))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), live.shapes()) == jax.tree.map(
        lambda x: (x.shape, x.dtype), carry
    )


@given(st.fixed_dictionaries(NUMBERS), st.fixed_dictionaries(NUMBERS), st.booleans())
def test_a_branch_on_the_packed_state_is_the_branch(numbers, others, takes):
    carry = state_of(numbers)
    form = StateForm.of(carry)

    def change(carry, rings):
        own = {name: jnp.asarray(x) for name, x in others.items()}
        return carry.replace(callbacks={**carry.callbacks, "own": own}, epoch=carry.epoch + 1), rings + 1

    def program(leaves, predicate):
        packing = StatePacking(form)
        carry, rings = packing.cond(predicate, change, packing.unpack(leaves), jnp.zeros(()))
        return packing.pack(carry), rings

    leaves, rings = jax.jit(program)(DeviceState.of(carry).leaves, takes)
    expected, count = change(carry, jnp.zeros(())) if takes else (carry, jnp.zeros(()))
    assert bits(DeviceState(leaves, form).carry()) == bits(expected)
    assert rings == count


def test_numbers_that_nothing_changes_are_not_written():
    form = StateForm.of(state_of({"int": np.int32(3)}))

    def program(leaves):
        packing = StatePacking(form)
        return packing.pack(packing.unpack(leaves))

    jaxpr = jax.make_jaxpr(program)(DeviceState.of(state_of({"int": np.int32(3)})).leaves).jaxpr
    assert jaxpr.outvars[0] is jaxpr.invars[0]


def test_a_loop_counts_what_is_packed():
    carry = state_of({"int": np.int32(3)})
    form = StateForm.of(carry)

    def program(leaves):
        packing = StatePacking(form)

        def body(carry, rings):
            return carry.replace(seq=carry.seq + 1, step=carry.step + 2), rings

        more = lambda carry, rings: carry.seq < 5  # noqa: E731
        return packing.pack(packing.while_loop(more, body, packing.unpack(leaves), ())[0])

    end = DeviceState(jax.jit(program)(DeviceState.of(carry).leaves), form).carry()
    assert (int(end.seq), int(end.step)) == (5, 10)
    assert bits(end.callbacks) == bits(carry.callbacks)
