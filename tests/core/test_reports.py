"""What callbacks report of themselves: as metrics, on request."""

import csv

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import fit

import jaxcb as jc

STOP = jc.EarlyStopping("loss", patience=3, min_delta=1e9, report=True)
CUT = jc.ReduceLROnPlateau("val_loss", patience=1, min_delta=1e9, cooldown=2, report=True)


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_the_patience_left_is_logged_with_the_others(executor, tmp_path):
    result = fit(executor, callbacks=[STOP, CUT, jc.CSVLogger("log.csv")], run_dir=tmp_path)
    assert result.stopped_epoch == 3
    # of a metric of the training: as before the end of the epoch; of a validation: with its report
    assert result.history["EarlyStopping/patience_left"].tolist() == [3, 3, 2, 1]
    assert result.history["ReduceLROnPlateau/patience_left"].tolist() == [1, 1, 1, 1]
    assert result.history["ReduceLROnPlateau/cooldown_left"].tolist() == [0, 2, 1, 0]
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["EarlyStopping/patience_left"] for row in rows] == ["3", "3", "2", "1"]
    replayed = jc.replay([STOP, CUT], tmp_path)
    assert replayed.stopped_epoch == 3
    np.testing.assert_array_equal(result.callback_states["EarlyStopping"].wait, 3)


def test_others_may_monitor_it_and_none_is_there_unasked():
    seen = jc.make_callback(
        on_epoch_end=lambda state, m: (state, jc.actions.Stop(m["EarlyStopping/patience_left"] == 2, "two are left"))
    )
    assert fit(callbacks=[STOP, seen]).stopped_epoch == 2
    plain = fit(epochs=2, callbacks=[jc.EarlyStopping("loss")])
    assert not [name for name in plain.history if "/" in name]
    with pytest.raises(jc.errors.MissingMetricError, match="EarlyStopping/patience_left"):
        fit(callbacks=[jc.EarlyStopping("loss"), seen])


def test_members_have_their_own():
    members = jc.sweep(
        lambda seed: jnp.zeros(()), lambda w, b: jnp.mean(w * 0 + b), jnp.ones(4), optimizer=optax.sgd(0.1), epochs=9,
        over={"callbacks.mine.patience": [2, 4]}, callbacks=[jc.EarlyStopping("loss", name="mine", report=True)],
        verbose=0,
    )  # fmt: skip
    assert members.member(0).history["mine/patience_left"].tolist() == [2, 2, 1]
    assert members.member(1).history["mine/patience_left"].tolist() == [4, 4, 3, 2, 1]


def test_grouping_changes_no_report():
    metrics = jc.Metrics({"loss": 1.0, "val_loss": 1.0})
    see = jc.make_callback(on_epoch_end=lambda s, m: (s, jc.actions.Print("x", values={n: m[n] for n in m})))
    one, other = jc.chain(STOP, CUT, see), jc.chain(STOP, jc.chain(CUT, see))
    found = [chain.on_epoch_end(chain.init(), metrics)[1][-1].values for chain in (one, other)]
    assert found[0] == found[1]
    assert int(found[0]["EarlyStopping/patience_left"]) == 3


@pytest.mark.parametrize("kind", [jc.EarlyStopping, jc.ReduceLROnPlateau])
def test_the_patience_left_falls_with_each_report_without_an_improvement(kind):
    callback = kind("loss", patience=4, report=True)
    state, left = callback.init(), []
    for epoch, loss in enumerate([1.0, 0.5, 0.75, 0.75]):
        state, _ = callback.on_epoch_end(state, jc.Metrics({"loss": loss, "learning_rate": 0.1}, epoch=epoch))
        left.append(int(callback.reports(state)["patience_left"]))
    assert left == [4, 4, 3, 2]
