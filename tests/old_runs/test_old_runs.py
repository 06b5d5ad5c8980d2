"""Run folders written by the tree of 27 November 2026 (commit d4e23b5) resume for ever.

`single` has state in every callback and was interrupted after epoch 7 of 60; `sweep` has four members, of which one
had stopped, and was interrupted after epoch 6 of 40. `within_an_epoch` (30 November 2026, commit b535e2d) was killed in
the middle of its second epoch. Numbers of later epochs of `single` depend on the processor: the
bias before the batch normalisation has a gradient that is rounding alone, which Adam scales to full steps. So its
decisions are compared with a replay of its own records, and its numbers for the first epoch after the resume.
"""

import csv
import shutil
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcb as jc

HERE = Path(__file__).parent
_rng = np.random.default_rng(0)
X = _rng.normal(size=(96, 4)).astype(np.float32)
Y = (np.tanh(X @ _rng.normal(size=(4, 8))) @ _rng.normal(size=(8, 1))).astype(np.float32)
DONE, NEXT = 7, 1.3675923347473145  # epochs before the interrupt; `val_loss` of the one after it
STOPPED = [None, 34, 11, 4]  # the epoch in which each member of the sweep stops; the first one does not
LOSSES = [1.4136909, 0.9358162, 0.9757690, 1.1776091]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(nnx.relu(self.norm(self.hidden(x)))))


def deciding():
    return [
        jc.EarlyStopping(patience=5, min_delta=0.02, restore_best_weights=True),
        jc.ReduceLROnPlateau(factor=0.5, patience=2, min_delta=0.02),
    ]


def idle():
    """Stands for the callback that interrupted the run."""
    return jc.LambdaCallback(on_epoch_end=lambda epoch, logs: None, name="stop")


def resume_single(run_dir, epochs=60, **how):
    callbacks = [
        jc.SwapEMAWeights(decay=0.8),
        *deciding(),
        jc.CSVLogger("log.csv"),
        jc.callbacks.JSONLogger("log.jsonl"),
        jc.TensorBoard("logs", write_graph=False),
        jc.ModelCheckpoint("best", save_best_only=True, save_weights_only=True),
        idle(),
    ]
    return jc.fit(
        Net(nnx.Rngs(0)),
        lambda model, batch: jnp.mean((model(batch[0]) - batch[1]) ** 2),
        (X[:64], Y[:64]),
        validation_data=(X[64:], Y[64:]),
        optimizer=optax.adam,
        learning_rate=optax.cosine_decay_schedule(0.03, 400),
        epochs=epochs,
        batch_size=16,
        seed=3,
        run_dir=run_dir,
        resume=True,
        callbacks=callbacks,
        **how,
    )


def resume_sweep(run_dir):
    return jc.sweep(
        {"w": jnp.zeros((4, 1))},
        lambda params, batch: jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2),
        (X[:64], Y[:64]),
        over=[{"optimizer.learning_rate": r} for r in (0.003, 0.01, 0.03, 0.1)],
        validation_data=(X[64:], Y[64:]),
        optimizer=optax.adam,
        epochs=40,
        batch_size=16,
        run_dir=run_dir,
        resume=True,
        verbose=0,
        callbacks=[jc.EarlyStopping(patience=3, min_delta=0.01), idle()],
    )


@pytest.fixture
def single(tmp_path):
    return shutil.copytree(HERE / "single", tmp_path / "single")


def column(path, name):
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def replayed(run_dir):
    """What the deciding callbacks do on what a run recorded."""
    return jc.replay(deciding(), {"val_loss": column(run_dir / "history.csv", "val_loss")})


def remembered(values):
    """The states of the deciding callbacks after these reports, by hand."""
    callbacks = jc.chain(*deciding())
    state = callbacks.init()
    for epoch, value in enumerate(values):
        metrics = jc.Metrics({"val_loss": np.float32(value)}, step=4 * (epoch + 1), epoch=epoch)
        state, _ = callbacks.on_epoch_end(state, metrics)
    return state


def test_what_the_callbacks_remembered_comes_back(single):
    values = column(single / "history.csv", "val_loss")
    assert len(values) == DONE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "jaxcb: resuming .* with another request")  # of fewer epochs
        states = resume_single(single, epochs=DONE, verbose=0).callback_states
    for name, expected in remembered(values).items():
        assert states[name] == expected, name
    assert float(states["ModelCheckpoint"].best) == np.float32(min(values))


def test_an_old_run_goes_on_where_it_was(single, capsys):
    before = (single / "history.csv").read_text()
    result = resume_single(single, verbose=2)
    said = capsys.readouterr().out
    assert f"in epoch {DONE + 1}" in said
    assert "other callbacks" not in said
    assert (single / "history.csv").read_text().startswith(before)
    np.testing.assert_allclose(result.history["val_loss"][DONE], NEXT, rtol=1e-3)
    replay = replayed(single)
    assert result.stop_reason.startswith("EarlyStopping: val_loss has not improved")
    assert result.stopped_epoch == replay.stopped_epoch == len(result.history["val_loss"]) - 1
    rates, bases = (np.float32(column(single / "history.csv", n)) for n in ("learning_rate", "base_learning_rate"))
    # a cut at an epoch's end holds from the next update on
    np.testing.assert_allclose(rates[1:] / bases[1:], replay.lr_scale[:-1], rtol=1e-5)
    assert (single / "log.csv").read_text().count("\n") == len(rates) + 1
    assert (single / "log.jsonl").read_text().count("\n") == len(rates)


def test_an_old_sweep_ends_as_it_would_have(tmp_path):
    result = resume_sweep(shutil.copytree(HERE / "sweep", tmp_path / "sweep"))
    assert [result.member(i).stopped_epoch for i in range(4)] == STOPPED
    last = [result.member(i).history["val_loss"][-1] for i in range(4)]
    np.testing.assert_allclose(last, LOSSES, rtol=1e-4)


def test_the_means_of_an_epoch_that_was_cut_are_those_of_all_its_steps(tmp_path):
    def squares(params, batch):
        error = batch[0] @ params["w"] - batch[1]
        return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}

    def run(run_dir):
        callbacks = [
            jc.BackupAndRestore("unused", save_freq=6),
            jc.LambdaCallback(on_train_batch_end=lambda batch, logs: None, name="cut"),
        ]
        return jc.fit(
            {"w": jnp.zeros((4, 1))}, squares, (X[:64], Y[:64]), optimizer=optax.adam, learning_rate=0.03, epochs=3,
            batch_size=8, run_dir=run_dir, resume=True, verbose=0, callbacks=callbacks,
        )  # fmt: skip

    shutil.copytree(HERE / "within_an_epoch", tmp_path / "old")
    old, new = run(tmp_path / "old"), run(tmp_path / "new")
    for name in ("loss", "mae"):
        np.testing.assert_allclose(old.history[name], new.history[name], rtol=1e-6)
