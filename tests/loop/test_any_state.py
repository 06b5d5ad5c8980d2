"""Runs without data whose state is no `TrainState`: a sampler's, an environment's, another library's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _compilations import counting
from flax.training import train_state as flax_state

import jaxcb as jc

TX = jc.adjustable_lr(optax.sgd, learning_rate=0.2)


def walk(state):
    """A step of a chain whose state is a dict, with a key of its own."""
    key, own = jax.random.split(state["key"])
    at = 0.5 * state["at"] + jax.random.normal(own)
    return {"key": key, "at": at, "steps": state["steps"] + 1}, {"square": at**2}


def chain():
    return {"key": jax.random.key(3), "at": jnp.zeros(()), "steps": 0}


def descend(carry):
    """A step of Flax's `TrainState` beside the state of an environment."""
    state, (key, count) = carry
    key, own = jax.random.split(key)
    noise = 0.1 * jax.random.normal(own)
    loss, grads = jax.value_and_grad(lambda p: (p["w"] - 3.0 + noise) ** 2)(state.params)
    return (state.apply_gradients(grads=grads), (key, count + 1)), {"loss": loss}


def learner():
    state = flax_state.TrainState.create(apply_fn=len, params={"w": jnp.zeros(())}, tx=TX)
    return state, (jax.random.key(4), jnp.zeros((), jnp.int32))


STEERING = [
    jc.ReduceLROnPlateau("loss", patience=1, min_delta=1.0, factor=0.5),
    jc.EarlyStopping("loss", patience=3, min_delta=0.01, restore_best_weights=True),
    jc.CSVLogger("log.csv"),
]
CASES = [(walk, chain, [jc.EarlyStopping("square", mode="min", patience=4)]), (descend, learner, STEERING)]


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("step", "start", "callbacks"), CASES)
def test_it_is_scan_and_ends_in_the_form_that_was_given(step, start, callbacks, tmp_path):
    loop = jc.Loop(step, callbacks=callbacks)
    given = {"steps": 40, "steps_per_epoch": 2, "verbose": 0}
    result = loop.run(start(), **given, run_dir=tmp_path / "run")
    run = jax.jit(lambda s: jc.scan(callbacks, step, s, 40, steps_per_epoch=2))(start())
    assert jax.tree.structure(result.model) == jax.tree.structure(start())
    same(result.model, run.state)
    assert result.stop_reason == jc.stop_reasons(run.records)
    assert int(result.state.step) == int(run.step) < 40
    with counting() as counts:
        loop.run(start(), **given, run_dir=tmp_path / "again")
    assert counts["compiled"] == 0


@pytest.mark.parametrize(("step", "start", "callbacks"), CASES)
def test_it_resumes_bit_for_bit(step, start, callbacks, tmp_path):
    loop, run_dir = jc.Loop(step, callbacks=callbacks), tmp_path / "parts"
    whole = loop.run(start(), steps=7, verbose=0, run_dir=tmp_path / "whole")
    loop.run(start(), steps=4, verbose=0, run_dir=run_dir)
    resumed = loop.run(start(), steps=7, verbose=0, run_dir=run_dir, resume=True)
    assert jax.tree.structure(resumed.model) == jax.tree.structure(start())
    same(resumed.model, whole.model)


@pytest.mark.parametrize("validation_data", [None, np.arange(4, dtype=np.float32)])
def test_validation_sees_the_state_in_its_form(validation_data):
    def eval_step(state, batch=0.0):
        return {"steps": state["steps"] + jnp.mean(batch)}

    result = jc.Loop(walk, eval_step).run(
        chain(), steps=4, steps_per_epoch=2, validation_data=validation_data, validation_batch_size=4, verbose=0
    )
    offset = 0.0 if validation_data is None else 1.5
    np.testing.assert_array_equal(result.history["val_steps"], [2 + offset, 4 + offset])


BAD = [
    ({"callbacks": jc.SwapEMAWeights()}, ValueError, "SwapEMAWeights keeps copies of weights, but nothing says which"),
    ({"callbacks": jc.ModelCheckpoint("x")}, ValueError, "ModelCheckpoint keeps copies of weights, but nothing says"),
    ({"callbacks": jc.ReduceLROnPlateau("square", mode="min")}, ValueError, "ReduceLROnPlateau: .* the learning rate"),
    ({"callbacks": jc.EarlyStopping()}, jc.errors.MissingMetricError, "EarlyStopping.*no metric 'val_loss'"),
    ({"callbacks": jc.callbacks.NormMonitor()}, ValueError, "^NormMonitor needs the gradients before the update"),
    ({"step": jc.Step(lambda p, b: 0.0)}, TypeError, "train_state must be a TrainState, .* got a dict"),
    (
        {"train_data": np.ones(4), "step": lambda s, b: (s, {})},
        TypeError,
        "train_state must be a TrainState, .* got a dict",
    ),
    ({"train_data": np.ones(4)}, TypeError, r"with data, a run calls train_step\(train_state, batch\), .* \(state\)"),
    ({"step": lambda s, b: (s, {})}, TypeError, r"without data, a run calls train_step\(state\), .* \(s, b\)"),
    ({"eval_step": lambda s, b: {}}, TypeError, r"without data, a run calls eval_step\(state\), .* \(s, b\)"),
    ({"state": {"a": len}}, TypeError, r"the state\['a'\] is <built-in function len>, expected an array"),
    ({"step": lambda s: s}, TypeError, "the step returned dict, expected .state, metrics."),
    ({"step": lambda s: ({**s, "new": 1.0}, {})}, ValueError, r"changed the structure: leaf \['new'\] is new"),
    ({"step": lambda s: ({**s, "steps": 1.5}, {})}, ValueError, "dtype float32, expected int32 as at the start"),
]


@pytest.mark.parametrize(("given", "error", "match"), BAD)
def test_what_does_not_fit_is_refused_before_the_first_step(given, error, match):
    arguments = {"step": walk, "eval_step": None, "callbacks": (), "state": chain(), "train_data": None} | given
    loop = jc.Loop(arguments["step"], arguments["eval_step"], callbacks=arguments["callbacks"])
    with pytest.raises(error, match=match):
        loop.run(arguments["state"], arguments["train_data"], steps=2, verbose=0)
