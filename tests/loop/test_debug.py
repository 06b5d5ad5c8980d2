"""`debug=True` and `fast_dev_run`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop import _runs

import jaxcb as jc


@pytest.mark.long
def test_a_debugged_run_is_the_same_run():
    plain, debugged = (_runs.fit("stepped", epochs=2, debug=debug) for debug in (False, True))
    for name in plain.history:
        np.testing.assert_allclose(plain.history[name], debugged.history[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(plain.params["w"], debugged.params["w"], rtol=1e-5)
    assert debugged.executor == "stepped"


@pytest.mark.long
def test_functions_see_numbers():
    """Callbacks see concrete arrays, and so does what the loss function prints of its batch."""
    seen = {"hook": 0, "batch": 0}

    class Look(jc.Callback):
        def on_batch_end(self, state, metrics):
            if not isinstance(metrics["loss"], jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
                seen["hook"] += 1
                assert float(metrics["loss"]) > 0
            return state, None

    def loss_fn(params, batch):
        if isinstance(batch[0], np.ndarray | jax.Array) and not isinstance(batch[0], jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
            seen["batch"] += 1
        return _runs.loss_fn(params, batch)

    _runs.fit("stepped", loss_fn=loss_fn, epochs=1, callbacks=[Look()], validation_data=None, debug=True)
    assert seen == {"hook": 5, "batch": 5}


@pytest.mark.everyday(1)
@pytest.mark.parametrize("where", ["metric 'loss'", "gradient 'w'"])
def test_the_first_nan_names_step_and_leaf(where):
    x, y = _runs.make_data()
    x = x.copy()
    if where.startswith("metric"):
        x[33, 1] = np.nan  # the third batch of 16

    def loss_fn(params, batch):
        loss, metrics = _runs.loss_fn(params, batch)
        if where.startswith("gradient"):
            # the root of zero has a value, and no gradient
            step_two = jnp.any(batch[0][0] == x[32, 0])
            loss = loss + jnp.where(step_two, 1.0, 0.0) * jnp.sqrt(jnp.sum(params["w"] * 0.0))
        return loss, metrics

    with pytest.raises(FloatingPointError, match=rf"^step [13]: {where} has \d NaN of \d values"):
        _runs.fit(data=(x, y), loss_fn=loss_fn, shuffle=False, epochs=1, callbacks=[], debug=True)


def test_a_healthy_run_does_not_trip_jax_debug_nans():
    with jax.debug_nans(True):
        result = _runs.fit(epochs=2)
        assert jax.config.jax_debug_nans  # pyright: ignore[reportAttributeAccessIssue]
    assert np.isfinite(result.history["val_loss"]).all()


def test_breakpoints_and_errors_of_hooks_stand_in_the_users_own_frames():
    class Broken(jc.Callback):
        def on_epoch_end(self, state, metrics):
            if not isinstance(metrics["loss"], jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
                raise KeyError(f"the loss is {float(metrics['loss']):.3f}")
            return state, None

    with pytest.raises(KeyError, match=r"the loss is \d"):
        _runs.fit(epochs=1, callbacks=[Broken()], debug=True)


@pytest.mark.everyday(2)
@pytest.mark.parametrize("batches", [True, 3])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_trial_run_tries_everything_and_leaves_nothing(tmp_path, monkeypatch, batches, streamed):
    monkeypatch.chdir(tmp_path)
    epochs, x, y = [], *_runs.make_data()
    data = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)] if streamed else (x, y)
    result = _runs.fit(
        data=data,
        batch_size=None if streamed else 16,
        epochs=50,
        eval_every=100,
        callbacks=[
            jc.CSVLogger("log.csv"),
            jc.CSVLogger(str(tmp_path / "deep" / "absolute.csv"), name="second"),
            jc.callbacks.NormMonitor(every=1),
            jc.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append((epoch, sorted(logs)))),
            jc.make_callback(on_epoch_end=lambda s, m: (s, jc.actions.Checkpoint("saved", values={}))),
        ],
        run_dir=tmp_path / "run",
        fast_dev_run=batches,
    )
    assert int(result.state.step) == int(batches)
    assert [e for e, _ in epochs] == [0]
    assert "val_loss" in epochs[0][1]
    assert list(tmp_path.iterdir()) == []
    assert result.files == ()
    assert result.run_dir is None


@pytest.mark.long
def test_a_debugged_run_has_no_steps_after_its_stop():
    x, y = _runs.make_data()
    x = x.copy()
    x[40] = np.nan  # in the third step
    stop = jc.make_callback(on_batch_end=lambda state, m: (state, jc.actions.Stop(m.step == 2)))
    result = _runs.fit(data=(x, y), shuffle=False, epochs=1, callbacks=[stop], debug=True)
    assert int(result.state.step) == 2


def test_a_trial_run_saves_nothing(tmp_path):
    result = _runs.fit(callbacks=[jc.BackupAndRestore(tmp_path / "backup", save_freq=1)], fast_dev_run=2)
    assert int(result.state.step) == 2
    assert not (tmp_path / "backup").exists()
