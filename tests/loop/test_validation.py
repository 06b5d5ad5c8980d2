"""Validation: when it happens, what it weighs, and epochs' means; against numpy."""

import numpy as np
import pytest
from loop._runs import fit, make_data, make_params

import jaxcb as jc

EXECUTORS = ("looped", "stepped")
X, Y = make_data()
VAL_X, VAL_Y = VAL = make_data(20, seed=1)


def frozen(executor="looped", **changes):
    """A run whose weights stay, so that numpy can tell every value: 5 steps an epoch, the last of 6 rows."""
    given = {"learning_rate": 0.0, "epochs": 3, "callbacks": [], "steps_per_execution": 4} | changes
    return fit(executor, **given)


def errors(x, y):
    params = make_params()
    return np.asarray(x @ params["w"] + params["b"] - y, np.float64)


def mse(x, y):
    return (errors(x, y) ** 2).mean()


def in_batches(x, y, size):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_values_are_means_over_rows_whatever_the_batches(executor):
    run = frozen(executor)
    np.testing.assert_allclose(run.history["loss"], [mse(X, Y)] * 3, rtol=1e-6)
    np.testing.assert_allclose(run.history["mae"], [np.abs(errors(X, Y)).mean()] * 3, rtol=1e-6)
    np.testing.assert_allclose(run.history["val_loss"], [mse(*VAL)] * 3, rtol=1e-6)  # batches of 16 and 4
    assert run.history.step.tolist() == [5, 10, 15]


def test_the_size_of_validation_batches_changes_no_value():
    small = frozen(validation_batch_size=7)
    large = frozen(validation_batch_size=1000)
    np.testing.assert_allclose(small.history["val_loss"], mse(*VAL), rtol=1e-6)
    np.testing.assert_allclose(large.history["val_loss"], mse(*VAL), rtol=1e-6)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_named_sets_resident_and_streamed_together(executor):
    sets = {"near": VAL, "far": in_batches(X[:9], Y[:9], 4)}
    run = frozen(executor, validation_data=sets)
    np.testing.assert_allclose(run.history["val_near_loss"], mse(*VAL), rtol=1e-6)
    np.testing.assert_allclose(run.history["val_far_loss"], mse(X[:9], Y[:9]), rtol=1e-6)
    assert run.history.step.tolist() == [5, 10, 15]
    assert "val_loss" not in run.history


@pytest.mark.parametrize("executor", EXECUTORS)
def test_streamed_training_with_streamed_validation(executor):
    run = frozen(
        executor, data=in_batches(X, Y, 16), batch_size=None, validation_data={"far": in_batches(X[:9], Y[:9], 4)}
    )
    np.testing.assert_allclose(run.history["val_far_loss"], [mse(X[:9], Y[:9])] * 3, rtol=1e-6)
    np.testing.assert_allclose(run.history["loss"], [mse(X, Y)] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    "data",
    [lambda: VAL, lambda: in_batches(*VAL, 4)],
    ids=["resident", "streamed"],
)
def test_validation_steps_bounds_the_batches(data):
    run = frozen(validation_data=data(), validation_batch_size=4, validation_steps=2, epochs=1)
    np.testing.assert_allclose(run.history["val_loss"], [mse(VAL_X[:8], VAL_Y[:8])], rtol=1e-6)


def test_validation_split_takes_the_last_rows():
    run = frozen(validation_data=None, validation_split=0.2, epochs=1, batch_size=8)
    np.testing.assert_allclose(run.history["val_loss"], [mse(X[56:], Y[56:])], rtol=1e-6)
    np.testing.assert_allclose(run.history["loss"], [mse(X[:56], Y[:56])], rtol=1e-6)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("freq", "due"), [(2, [False, True, False, True, False]), ((1, 4), [True, False, False, True, False])]
)
def test_validation_freq_names_the_epochs(executor, freq, due):
    run = frozen(executor, validation_freq=freq, epochs=5)
    assert run.history.reported("val_loss").tolist() == due
    assert np.isnan(run.history["val_loss"]).tolist() == [not d for d in due]
    assert run.history.reported("loss").all()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("streamed", [False, True])
def test_eval_every_validates_within_epochs_and_at_the_end(executor, streamed):
    validation = in_batches(*VAL, 16) if streamed else VAL
    run = frozen(executor, eval_every=3, validation_data=validation, epochs=None, steps=13)
    # a row at each validation and at each epoch's end; the last partial epoch closes
    assert run.history.step.tolist() == [3, 5, 6, 9, 10, 12, 13]
    assert run.history.epoch.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert run.history.reported("val_loss").tolist() == [True, False, True, True, False, True, True]
    assert run.history.reported("loss").tolist() == [False, True, False, False, True, False, True]


def test_a_validation_at_an_epochs_end_happens_once():
    run = frozen(eval_every=5, epochs=2)
    assert run.history.step.tolist() == [5, 10]
    assert run.history.reported("val_loss").all()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_patience_counts_reports_of_the_monitor(executor):
    stopping = jc.EarlyStopping(patience=2)
    within = frozen(executor, eval_every=2, epochs=9, callbacks=[stopping])
    assert int(within.state.step) == 6  # reported at 2 (the best), 4 and 6
    assert within.stopped_epoch == 1
    assert within.history.step.tolist()[-1] == 6  # validated already at that step, and the epoch closed
    rarer = frozen(executor, validation_freq=3, epochs=20, callbacks=[stopping])
    assert rarer.stopped_epoch == 8  # after epochs 3, 6 and 9
    assert int(rarer.callback_states["EarlyStopping"].wait) == 2


def test_a_monitor_of_a_training_metric_counts_epochs():
    run = frozen(callbacks=[jc.EarlyStopping("loss", patience=2, min_delta=1e-3)], epochs=9, eval_every=2)
    assert run.stopped_epoch == 2


# The length of a run


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"epochs": None, "steps": 7}, [5, 7]),
        ({"epochs": None, "steps": 3}, [3]),
        ({"epochs": 9, "steps": 6}, [5, 6]),
        ({"epochs": 3, "steps_per_epoch": 2}, [2, 4, 6]),
        ({"epochs": None, "steps": 5, "steps_per_epoch": 2}, [2, 4, 5]),
        ({"epochs": np.int64(2), "steps": 100.0}, [5, 10]),
    ],
    ids=str,
)
def test_a_run_is_as_long_as_it_was_asked_to_be(executor, length, steps):
    run = frozen(executor, **length)
    assert run.history.step.tolist() == steps
    assert run.history.epoch.tolist() == list(range(len(steps)))
    assert int(run.state.step) == steps[-1]
    assert run.history.reported("val_loss").all()
    assert run.stop_reason is None
    assert run.stopped_epoch is None


def test_steps_per_epoch_shortens_the_epochs_mean():
    run = frozen(data=in_batches(X, Y, 16), batch_size=None, validation_data=None, steps_per_epoch=2, epochs=2)
    np.testing.assert_allclose(run.history["loss"], [mse(X[:32], Y[:32]), mse(X[32:64], Y[32:64])], rtol=1e-6)


class Empties:
    """Gives its batches once, and then nothing."""

    def __init__(self):
        self.walks = 0

    def __iter__(self):
        self.walks += 1
        return iter(in_batches(*VAL, 16) if self.walks < 3 else [])


def test_a_validation_stream_that_does_not_start_anew_says_so():
    with pytest.raises(jc.errors.DataError, match=r"validation_data.*gave no batch when it was iterated again"):
        frozen(validation_data=Empties())
