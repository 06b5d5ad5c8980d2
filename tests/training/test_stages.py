"""Unfreezing at an epoch: the same run trains more from there on, in another program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _compilations import counting
from training._two_parts import DATA, bits, close

import jaxcb as jc

STREAM = [tuple(part[i : i + 6] for part in DATA) for i in range(0, 24, 6)]
PARTS = {0: "head/**", 2: "**"}
pytestmark = pytest.mark.usefixtures("as_optax_promotes")


def params():
    one, two = jax.random.split(jax.random.key(0))
    return {"body": {"kernel": jax.random.normal(one, (3, 4))}, "head": {"kernel": jax.random.normal(two, (4, 1))}}


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["body"]["kernel"]) @ params["head"]["kernel"] - y) ** 2)


def fit(model=None, data=DATA, **kwargs):
    given = {"optimizer": optax.adamw, "learning_rate": 0.05, "epochs": 4, "batch_size": 6, "verbose": 0}
    given |= {"trainable": PARTS} | kwargs
    if data is STREAM:
        given.pop("batch_size")
    return jc.fit(params() if model is None else model, loss_fn, data, **given)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", ["looped", "stepped"])
@pytest.mark.parametrize("data", [DATA, STREAM], ids=["arrays", "stream"])
def test_it_is_a_run_of_each_part_after_the_other(data, executor, capsys):
    execution = jc.Execution(executor=executor)
    whole = fit(data=data, shuffle=False, execution=execution, verbose=2)
    assert "epoch 3 trains 16 of 16 parameters ('**'), in another program" in capsys.readouterr().out
    first = fit(data=data, shuffle=False, execution=execution, trainable="head/**", epochs=2)
    second = fit(first, data=data, shuffle=False, execution=execution, trainable="**", epochs=2)
    close(whole.params, second.params)
    close(whole.history["loss"], np.concatenate([first.history["loss"], second.history["loss"]]))
    np.testing.assert_array_equal(first.params["body"]["kernel"], params()["body"]["kernel"])
    assert whole.state.frozen is None
    assert int(whole.state.step) == 16


LONG = pytest.mark.long


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("cut", "executor"),
    [
        (2, "looped"),
        (3, "stepped"),
        *(pytest.param(*case, marks=LONG) for case in [(1, "looped"), (3, "looped"), (1, "stepped"), (2, "stepped")]),
    ],
)
def test_it_resumes_bit_for_bit_from_each_stage(tmp_path, cut, executor):
    kwargs = {
        "callbacks": [jc.EarlyStopping("loss", patience=9, restore_best_weights=True), jc.ModelCheckpoint("last")],
        "execution": jc.Execution(executor=executor),
    }
    whole = fit(**kwargs, run_dir=tmp_path / "whole")
    fit(**kwargs, run_dir=tmp_path / "cut", epochs=cut)
    resumed = fit(**kwargs, run_dir=tmp_path / "cut", resume=True)
    assert bits(resumed.params) == bits(whole.params)
    assert bits(resumed.state.opt_state) == bits(whole.state.opt_state)
    assert (tmp_path / "cut" / "history.csv").read_text() == (tmp_path / "whole" / "history.csv").read_text()
    again = fit(**kwargs, run_dir=tmp_path / "cut", resume=True)  # its result is that of the record
    assert bits(again.params) == bits(whole.params)


def test_best_weights_of_the_first_stage_are_restored_with_what_was_frozen():
    calls = jc.EarlyStopping("loss", patience=9, restore_best_weights=True, mode="max")  # the first epoch is best
    result = fit(callbacks=[calls], learning_rate=0.01)
    assert int(result.callback_states["EarlyStopping"].best_epoch) < 2
    np.testing.assert_array_equal(result.params["body"]["kernel"], params()["body"]["kernel"])


def test_a_stop_in_the_first_stage_ends_the_run():
    result = fit(callbacks=[jc.EarlyStopping("loss", patience=1, min_delta=1e9)], trainable={0: "head/**", 3: "**"})
    assert result.stopped_epoch == 1
    assert result.state.frozen is not None


def test_a_second_run_traces_and_compiles_nothing():
    fit()
    with counting() as counts:
        fit(learning_rate=0.02)
    assert counts["compiled"] == 0


@pytest.mark.parametrize(
    ("trainable", "error", "words"),
    [
        ({1: "head/**"}, ValueError, "must say what is trained from epoch 0"),
        ({}, ValueError, "must say what is trained from epoch 0"),
        ({0: "head/**", 1: "body/**"}, ValueError, "leaves out parameters that were trained before"),
        ({"0": "head/**"}, ValueError, "each epoch of trainable must be a whole number"),
        ({0: "haed/**"}, ValueError, "Did you mean"),
    ],
)
def test_bad_stages_are_refused(trainable, error, words):
    with pytest.raises(error, match=words):
        fit(trainable=trainable)


def test_a_group_of_the_optimizer_may_be_frozen_at_first():
    result = fit(optimizer={"body/**": optax.sgd, "head/**": optax.adam}, learning_rate={"body": 0.02, "head": 0.05})
    np.testing.assert_allclose(result.history["learning_rate/body"], 0.02, rtol=1e-6)
    assert not np.array_equal(result.params["body"]["kernel"], params()["body"]["kernel"])


def test_epochs_belong_to_fit():
    with pytest.raises(TypeError, match="trainable is a dict of epochs, which only fit takes"):
        jc.TrainState.create(params=params(), trainable=PARTS)


def test_a_callback_that_wraps_the_optimizer_is_refused():
    with pytest.raises(ValueError, match="GradientAccumulation wraps the optimizer"):
        fit(callbacks=[jc.callbacks.GradientAccumulation(2)])
