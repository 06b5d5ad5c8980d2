"""A sweep that is cut short goes on as if it had never been."""

import csv

import jax
import numpy as np
import optax
import pytest
from loop._runs import loss_fn, make_data, make_params

import jaxcb as jc


class Quit(RuntimeError):
    pass


def sweep(run_dir, *, quit_at=None, **more):
    def leave(run):
        if run.epoch == quit_at:
            raise Quit

    callbacks = [
        jc.EarlyStopping(min_delta=0.02, restore_best_weights=True),
        jc.CSVLogger("log.csv"),
        jc.TensorBoard("tb"),
        jc.BackupAndRestore(run_dir),
        jc.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
        jc.make_callback(
            on_epoch_end=lambda state, m: (state, jc.actions.Call(leave, when=m.closes_epoch)), name="leave"
        ),
    ]
    return jc.sweep(
        make_params,
        loss_fn,
        make_data(),
        over={"seed": [0, 1], "callbacks.EarlyStopping.patience": [1, 2], "optimizer.learning_rate": [0.05, 0.3]},
        optimizer=optax.adam,
        callbacks=callbacks,
        epochs=10,
        batch_size=16,
        validation_data=make_data(20, seed=1),
        run_dir=run_dir,
        strategy="vmap",
        repack=True,
        verbose=0,
        **more,
    )


def lines(path):
    with path.open() as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return sweep(directory), directory


@pytest.mark.parametrize("quit_at", [pytest.param(2, marks=pytest.mark.long), 6])
def test_resumed_it_ends_as_if_never_cut_short(whole, tmp_path, quit_at):
    """Before the first member has stopped, and after some have left the program."""
    result, directory = whole
    with pytest.raises(Quit):
        sweep(tmp_path, quit_at=quit_at)
    again = sweep(tmp_path, resume=True)
    assert again.table() == result.table()
    for a, b in zip(again, result, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
        assert a.stop_reason == b.stop_reason
        for name in b.history:
            np.testing.assert_array_equal(a.history[name], b.history[name])
    for name in ("history.csv", "log.csv", "table.csv"):
        assert lines(tmp_path / name) == lines(directory / name), name


def test_a_finished_sweep_returns_its_result(whole):
    result, directory = whole
    again = sweep(directory, resume=True)
    assert again.table() == result.table()
    with pytest.raises(FileExistsError, match="resume=True"):
        sweep(directory)
