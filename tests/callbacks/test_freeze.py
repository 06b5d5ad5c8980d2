"""Freeze: what it freezes does not move, until it may; nothing is traced again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc

PARAMS = {
    "backbone": {"w": jnp.array([0.3, -2.0, 1e-30]), "b": jnp.zeros(())},
    "head": {"w": jnp.full((3,), 0.1)},
}
DATA = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def _strict():
    """Not here: optax promotes dtypes. The laws look at the callback's own arithmetic."""


def run(callback, executor="looped", epochs=4, traces=None, optimizer=optax.adamw, params=PARAMS, data=DATA):
    """The result, and the parameters after each epoch."""
    ends = []

    def loss(params, batch):
        if traces is not None:
            traces.append(1)
        hidden = batch * params["backbone"]["w"] + params["backbone"]["b"]
        return jnp.mean((hidden @ params["head"]["w"] - 1.0) ** 2)

    def note(run):
        ends.append(jax.device_get(run.state.params))

    watch = jc.make_callback(on_epoch_end=lambda state, metrics: (state, jc.actions.Call(note)))
    with jax.numpy_rank_promotion("allow"):
        result = jc.fit(
            params,
            loss,
            data,
            optimizer=optimizer,
            learning_rate=0.05,
            epochs=epochs,
            batch_size=4,
            callbacks=[callback, watch],
            verbose=0,
            execution=jc.Execution(executor=executor),
        )
    return result, ends


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_frozen_until_an_epoch_bit_for_bit_and_without_a_retrace(executor):
    """Weight decay is an update too."""
    traces = []
    _, ends = run(jc.callbacks.Freeze("backbone/**", until_epoch=2), executor, traces=traces)
    assert bits(ends[0]["backbone"]) == bits(ends[1]["backbone"]) == bits(PARAMS["backbone"])
    assert not np.array_equal(ends[0]["head"]["w"], PARAMS["head"]["w"])
    assert not np.array_equal(ends[2]["backbone"]["w"], PARAMS["backbone"]["w"])
    assert not np.array_equal(ends[2]["backbone"]["b"], PARAMS["backbone"]["b"])
    assert len(traces) == 1


def test_for_ever():
    result, _ = run(jc.callbacks.Freeze("backbone/**"))
    assert bits(result.params["backbone"]) == bits(PARAMS["backbone"])


def test_what_is_frozen_stays_whatever_its_update_is():
    """A NaN times 0 is a NaN, and -0.0 plus 0.0 is 0.0."""
    signs = {**PARAMS, "backbone": {"w": jnp.array([0.3, -0.0, 0.0]), "b": jnp.zeros(())}}
    for data in (DATA, np.full_like(DATA, np.nan)):
        result, _ = run(jc.callbacks.Freeze("backbone/**"), params=signs, data=data, epochs=1)
        assert bits(result.params["backbone"]) == bits(signs["backbone"])


def test_until_epoch_0_is_not_frozen():
    plain, _ = run(jc.make_callback(), optimizer=optax.sgd)
    result, _ = run(jc.callbacks.Freeze("**", until_epoch=0), optimizer=optax.sgd)
    np.testing.assert_allclose(result.params["head"]["w"], plain.params["head"]["w"], rtol=1e-6)


def test_several_patterns():
    result, _ = run(jc.callbacks.Freeze(("backbone/w", "head/**")), epochs=1)
    assert bits(result.params["backbone"]["w"]) == bits(PARAMS["backbone"]["w"])
    assert bits(result.params["head"]) == bits(PARAMS["head"])
    assert float(result.params["backbone"]["b"]) != 0.0


def test_two_of_them_thaw_one_after_the_other():
    both = jc.chain(jc.callbacks.Freeze("backbone/b", until_epoch=1), jc.callbacks.Freeze("backbone/w", until_epoch=2))
    _, ends = run(both)
    assert [float(e["backbone"]["b"]) != 0.0 for e in ends] == [False, True, True, True]
    assert [bits(e["backbone"]["w"]) != bits(PARAMS["backbone"]["w"]) for e in ends] == [False, False, True, True]


@pytest.mark.parametrize("where", ["backbon/**", ("head/**", "backbon/**")])
def test_a_pattern_that_fits_no_parameter_is_an_error_before_the_first_step(where):
    says = r"Freeze: where='backbon/\*\*' matches no parameter\. Parameters: backbone/b, backbone/w, head/w"
    with pytest.raises(ValueError, match=says):
        run(jc.callbacks.Freeze(where))


@pytest.mark.parametrize("where", [(), "", 3, ("head/**", None), None])
def test_patterns_are_checked(where):
    with pytest.raises(TypeError, match="Freeze: where must be a string that is not empty, or a tuple"):
        jc.callbacks.Freeze(where)


def test_the_epoch_is_checked():
    with pytest.raises(ValueError, match="Freeze: until_epoch must be a whole number of at least 0, got -1"):
        jc.callbacks.Freeze("**", until_epoch=-1)


def test_a_list_of_patterns_is_as_good_as_a_tuple():
    assert jc.callbacks.Freeze(["a", "b"]) == jc.callbacks.Freeze(("a", "b"))
    assert jc.callbacks.Freeze("a") == jc.callbacks.Freeze(("a",))
