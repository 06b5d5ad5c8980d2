"""A replay of a run with several optimizers: each rate is what it would be alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training._two_parts import DATA, apply_pytree, pytree

import jaxcb as jc

RATES = {"body": 0.25, "head": 0.5}
LOSSES = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan")]), min_size=6, max_size=6)


@given(losses=LOSSES, of=st.sampled_from([None, "body", "head"]), floor=st.sampled_from([0.0, 0.125]))
def test_a_rate_is_what_it_would_be_alone(losses, of, floor):
    plateau = jc.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=0.0, min_lr=floor)
    found = jc.replay(plateau.replace(of=of), {"val_loss": losses}, learning_rate=RATES)
    assert list(found.lr_scales) == list(RATES)
    for name, rate in RATES.items():
        alone = jc.replay(plateau, {"val_loss": losses}, learning_rate=rate).lr_scale
        expected = np.ones(6) if of not in (None, name) else alone
        if of is None and floor:  # it waits until the larger rate has come down to the floor, too
            continue
        np.testing.assert_array_equal(found.lr_scales[name], expected)


def test_a_replay_of_a_recorded_run_decides_as_the_run(tmp_path):
    def loss_fn(params, batch):
        x, y = batch
        return jnp.mean((apply_pytree(params, x) - y) ** 2)

    callbacks = [
        jc.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9, min_lr=0.01, of="head"),
        jc.ReduceLROnPlateau("loss", factor=0.25, patience=2, min_delta=1e9, of="body", name="slow"),
    ]
    groups = {"body/**": optax.sgd(0.02), "head/**": optax.adamw}
    with jax.numpy_rank_promotion("allow"):  # optax promotes
        result = jc.fit(
            pytree(), loss_fn, DATA, optimizer=groups, learning_rate={"head": 0.05}, epochs=5, batch_size=6, verbose=0,
            callbacks=callbacks, run_dir=tmp_path,
        )  # fmt: skip
    for source in (tmp_path, result.history):
        found = jc.replay(callbacks, source)
        for name, rate in result.state.learning_rates.items():
            assert float(found.lr_scales[name][-1]) == float(rate.scale) < 1.0
        head = result.history["learning_rate/head"] / result.history["base_learning_rate/head"]
        np.testing.assert_allclose(found.lr_scales["head"][:-1], head[1:], rtol=1e-6)
        np.testing.assert_array_equal(found.lr_scales["body"][:-1], result.history["lr_scale/body"][1:])
    over = {"callbacks.slow.patience": [2, 3]}
    grid = jc.replay(callbacks, tmp_path, over=over)
    for i, patience in enumerate([2, 3]):
        alone = jc.replay([callbacks[0], callbacks[1].replace(patience=patience)], tmp_path)
        assert {n: x[i] for n, x in grid.lr_scales.items()} == {n: x[-1] for n, x in alone.lr_scales.items()}
    assert {"lr_scale/body", "lr_scale/head"} <= set(grid.table())


def test_bad_names_are_refused_with_those_that_were_recorded():
    records = {"val_loss": [1.0, 1.0], "base_learning_rate/head": [0.5, 0.5], "base_learning_rate/body": [0.1, 0.1]}
    with pytest.raises(ValueError, match=r"a rate for 'haed', which was not recorded; recorded: head, body.*Did you"):
        jc.replay(jc.ReduceLROnPlateau(), records, learning_rate={"haed": 0.1})
    with pytest.raises(ValueError, match=r"the learning rate of 'haed', which does not exist.*'head'"):
        jc.replay(jc.ReduceLROnPlateau(of="haed"), records)
    with pytest.raises(ValueError, match="the optimizer has one rate for all parameters"):
        jc.replay(jc.ReduceLROnPlateau(of="head"), {"val_loss": [1.0, 1.0]})
    found = jc.replay(jc.ReduceLROnPlateau(), records)
    with pytest.raises(ValueError, match=r"has the learning rates head, body; read one of them: lr_scales\['head'\]"):
        _ = found.lr_scale
