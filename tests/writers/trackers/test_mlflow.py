"""`MLflowLogger` with the real package and a local store: MLflow's own client reads it back."""

import sys
import warnings

import numpy as np
import pytest
from loop._runs import fit

import jaxcb as jc
from jaxcb._src.writers.run_handle import Record, Run
from jaxcb._src.writers.trackers.mlflow import MLflowWriter
from jaxcb.writers import Context

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it and its dependencies think of this Python is not ours
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install jaxcb[mlflow]")

EXECUTORS = ("looped", "stepped")


@pytest.fixture(autouse=True)
def _local(monkeypatch):
    """A store in a directory needs no database; no test reaches for the network."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def uri(tmp_path):
    return (tmp_path / "mlruns").as_uri()


def runs(uri, experiment):
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return client, client.search_runs([found.experiment_id])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_store_holds_what_the_history_holds(executor, uri):
    result = fit(
        executor,
        epochs=4,
        validation_freq=2,
        callbacks=[jc.callbacks.MLflowLogger("digits", uri, run_name="first", tags={"model": "small"})],
    )
    client, (run,) = runs(uri, "digits")
    assert (run.info.status, run.info.run_name, run.data.tags["model"]) == ("FINISHED", "first", "small")
    assert set(run.data.metrics) == set(result.history)
    for name in result.history:
        points = client.get_metric_history(run.info.run_id, name)
        reported = result.history.reported(name)
        assert [p.step for p in points] == result.history.step[reported].tolist()
        assert [np.float32(p.value) for p in points] == result.history[name][reported].tolist()


def test_many_steps_come_in_order_and_whole(uri):
    fit(epochs=30, validation_data=None, callbacks=[jc.callbacks.MLflowLogger("digits", uri, every=1)])
    client, (run,) = runs(uri, "digits")
    points = client.get_metric_history(run.info.run_id, "batch_loss")
    assert sorted(p.step for p in points) == list(range(1, 151))


def test_each_training_is_a_run_of_its_own_and_the_users_is_not_touched(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    for _ in range(2):
        fit(epochs=1, validation_data=None, callbacks=[jc.callbacks.MLflowLogger(tracking_uri=uri)])
    _, found = runs(uri, "named")
    assert len(found) == 2
    assert mlflow.active_run() is None


def test_a_run_that_fails_is_marked_so(uri):
    context = Context(None, Run(None), 0, None)
    writer = MLflowWriter(context)
    _, (action,) = jc.chain(jc.callbacks.MLflowLogger("digits", uri)).on_train_begin(
        {"MLflowLogger": ()}, jc.Metrics({})
    )
    writer.prepare(action)
    writer.write(Record(action, "on_train_begin", 0, 0, 0))
    context.failure = RuntimeError("oh")
    writer.close()
    _, (run,) = runs(uri, "digits")
    assert run.info.status == "FAILED"


def test_a_server_that_is_down_is_told_once_and_loses_nothing_of_the_run(tmp_path):
    logger = jc.callbacks.MLflowLogger("digits", "http://127.0.0.1:1")  # a port that nobody has
    with pytest.warns(RuntimeWarning) as caught:
        result = fit(epochs=3, validation_data=None, callbacks=[logger, jc.callbacks.JSONLogger(tmp_path / "a.jsonl")])
    texts = [str(w.message) for w in caught]
    assert ["could not be reached" in t for t in texts] == [True, False]
    assert "MLflow could not be reached by MLflowLogger" in texts[0]
    assert "did not receive" in texts[1]
    assert int(result.state.step) == 15
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 3


def test_a_store_that_cannot_be_is_an_error_before_the_first_step(monkeypatch, uri):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    steps = []
    with pytest.raises(mlflow.exceptions.MlflowException, match="maintenance mode"):
        fit(
            callbacks=[
                jc.callbacks.MLflowLogger("a", uri),
                jc.callbacks.LogTo(lambda step, values: steps.append(step), every=1),
            ]
        )
    assert not steps


def test_the_package_is_asked_for_before_the_first_step(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r"MLflowLogger needs the package mlflow: pip install jaxcb\[mlflow\]"):
        fit(callbacks=[jc.callbacks.MLflowLogger("a")])
