"""The outside world: evaluators, host metrics and their journal, the wall clock."""

import csv
import datetime
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop import _runs

import jaxcb as jc
from jaxcb._src.loop.host.host_metrics import PEAKS, HostMetrics, peak_flops
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.run_handle import Run

EXECUTORS = ("looped", "stepped")


class StopOn(jc.Callback):
    """Stops at the first step at which a host metric is 1."""

    monitor: str = jc.static(default="stop_file")

    def on_batch_end(self, state, metrics):
        return state, jc.actions.Stop(metrics[self.monitor] >= 1, self.monitor)


class Keep(jc.Callback):
    """Remembers the last value of a host metric, at epoch ends."""

    monitor: str = jc.static(default="reading")

    def init(self):
        return {"last": -1.0, "epoch_of_change": -1}

    def on_epoch_end(self, state, metrics):
        value = metrics[self.monitor]
        changed = value != state["last"]
        epoch = jnp.where(changed, metrics.epoch, state["epoch_of_change"])
        return {"last": value, "epoch_of_change": epoch}, jc.actions.Stop(value > 5, "the reading is {reading:.0f}")


# Evaluators


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("validation", [True, False])
def test_evaluators_join_the_metrics_of_each_validation(executor, validation):
    seen = []

    def size(params):
        seen.append({name: np.asarray(value) for name, value in params.items()})
        return float(jnp.sum(params["w"] ** 2))

    result = _runs.fit(
        executor,
        epochs=6,
        validation_data=_runs.make_data(20, seed=1) if validation else None,
        validation_freq=2,
        callbacks=[jc.EarlyStopping("val_size", mode="min", patience=1)],
        metrics={
            "val_size": jc.probes.evaluator(size),
            ("val_a", "val_b"): jc.probes.evaluator(lambda params: (1.0, params["b"])),
        },
    )
    history = result.history
    assert history.reported("val_size").tolist() == [False, True, False, True]
    np.testing.assert_allclose(history["val_size"][1], np.sum(seen[0]["w"] ** 2), rtol=1e-6)
    np.testing.assert_allclose(history["val_b"][1], seen[0]["b"], rtol=1e-6)
    assert result.stopped_epoch == 3  # weights grow, so the second report is no improvement
    assert ("val_loss" in set(history)) == validation


def test_evaluators_see_the_weights_that_are_validated():
    """Averaged weights are swapped in for evaluators as for the compiled validation."""
    loss = []
    x, y = _runs.make_data(20, seed=1)
    result = _runs.fit(
        epochs=3,
        callbacks=[jc.SwapEMAWeights(decay=0.9)],
        metrics={"val_again": jc.probes.evaluator(lambda params: loss.append(1) or _runs.loss_fn(params, (x, y))[0])},
    )
    np.testing.assert_allclose(result.history["val_again"], result.history["val_loss"], rtol=1e-5)
    assert len(loss) == 3


def test_evaluators_in_the_middle_of_epochs():
    result = _runs.fit(
        steps=10, epochs=None, eval_every=3, callbacks=[], metrics={"val_one": jc.probes.evaluator(lambda params: 1)}
    )
    assert result.history.step[result.history.reported("val_one")].tolist() == [3, 6, 9, 10]


def test_an_evaluator_that_fails_names_itself_and_the_step():
    def broken(params):
        raise RuntimeError("no such language")

    with pytest.raises(RuntimeError, match="no such language") as caught:
        _runs.fit(callbacks=[], metrics={"val_bleu": jc.probes.evaluator(broken)})
    assert "This happened in the evaluator val_bleu, at step 5." in caught.value.__notes__
    with pytest.raises(ValueError, match="val_f1 is an array of shape \\(2,\\), expected a number"):
        _runs.fit(callbacks=[], metrics={"val_f1": jc.probes.evaluator(lambda params: [1.0, 2.0])})
    with pytest.raises(ValueError, match="'val_loss' is the name of an evaluator's metric"):
        _runs.fit(callbacks=[], metrics={"val_loss": jc.probes.evaluator(lambda params: 1.0)})
    with pytest.raises(TypeError, match="evaluator takes a function of the model, got int"):
        jc.probes.evaluator(3)


# Host metrics


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_host_metric_stops_the_run_between_two_calls_of_the_loop(executor):
    calls = []
    result = _runs.fit(
        executor,
        epochs=200,
        steps_per_execution=5,
        validation_data=None,
        callbacks=[StopOn()],
        metrics={"stop_file": jc.probes.host_metric(lambda: calls.append(1) or len(calls) > 12)},
    )
    # one read at the begin, then one a call; the step after the 13th read stops
    assert result.stop_reason == "StopOn: stop_file"
    assert 10 * 5 < int(result.state.step) <= 14 * 5
    assert "stop_file" not in set(result.history)


def test_host_metrics_that_nobody_reads_are_not_journaled(tmp_path):
    _runs.fit(epochs=2, callbacks=[], run_dir=tmp_path)
    assert not (tmp_path / "host_metrics.csv").exists()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("streamed", [False, True])
def test_the_journal_replays_to_the_same_decisions(tmp_path, executor, streamed):
    count = [0]

    def reading():
        count[0] += 1
        return count[0] // 4

    x, y = _runs.make_data(20, seed=1)
    result = _runs.fit(
        executor,
        epochs=40,
        steps_per_execution=2,
        callbacks=[Keep()],
        validation_data=[(x, y)] if streamed else (x, y),  # one that the host feeds has a dispatch of its own
        run_dir=tmp_path,
        metrics={"reading": jc.probes.host_metric(reading)},
    )
    assert result.stop_reason == "Keep: the reading is 6"
    replay = jc.replay([Keep()], tmp_path)
    assert replay.stopped_epoch == result.stopped_epoch
    assert replay.stop_reason == result.stop_reason
    assert int(replay.states["Keep"]["epoch_of_change"]) == int(result.callback_states["Keep"]["epoch_of_change"])
    with (tmp_path / "host_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "evaluated", "reading"]
    places = [(int(r["epoch"]), int(r["step"]), int(r["evaluated"])) for r in rows]
    assert places == sorted(places)
    assert len({r["reading"] for r in rows}) == len(rows)  # only what changed


def test_a_host_metric_that_fails_names_itself_and_the_step():
    def broken():
        raise OSError("the sensor is gone")

    with pytest.raises(OSError, match="the sensor is gone") as caught:
        _runs.fit(callbacks=[], metrics={"sensor": jc.probes.host_metric(broken)})
    assert any("the host metric 'sensor', read near step 0" in note for note in caught.value.__notes__)
    with pytest.raises(TypeError, match=r"'sensor' returned an array of shape \(2,\), not a number"):
        _runs.fit(callbacks=[], metrics={"sensor": jc.probes.host_metric(lambda: [1, 2])})
    with pytest.raises(ValueError, match="'elapsed' is the name of a built-in host metric"):
        _runs.fit(callbacks=[], metrics={"elapsed": jc.probes.host_metric(lambda: 1)})
    with pytest.raises(TypeError, match="host_metric takes a function without arguments, got int"):
        jc.probes.host_metric(3)


def test_a_monitor_may_be_a_host_metric():
    count = iter(range(10_000))
    result = _runs.fit(
        epochs=5,
        callbacks=[jc.EarlyStopping("temperature", mode="min", patience=2)],
        metrics={"temperature": jc.probes.host_metric(lambda: next(count))},
    )
    assert result.stopped_epoch == 2


# The wall clock


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_time_is_up(executor):
    result = _runs.fit(executor, epochs=1_000_000, callbacks=[jc.callbacks.Timer(0.2)], validation_data=None)
    assert result.stop_reason.startswith("Timer: the time limit of 0.2 s was reached after")
    assert len(result.history) < 1_000_000
    assert result.stop_reason.count("Timer") == 1


def test_durations():
    assert jc.callbacks.Timer("00:01:30").duration == 90.0
    assert jc.callbacks.Timer("01:00:00:01").duration == 86401.0
    assert jc.callbacks.Timer(datetime.timedelta(hours=1)).duration == 3600.0
    for wrong in ("1:30", "an hour", -1.0, None):
        with pytest.raises(ValueError, match="Timer: duration must be"):
            jc.callbacks.Timer(wrong)


def test_throughput_is_written_as_curves(tmp_path):
    result = _runs.fit(
        epochs=600,
        validation_data=None,
        steps_per_execution=5,
        callbacks=[jc.callbacks.Throughput(tokens_per_example=10, peak_flops=1e9, verbose=1)],
        run_dir=tmp_path,
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(tmp_path / "logs" / "train"), size_guidance={"scalars": 0})
    curves.Reload()

    def values(name):
        return np.asarray([event.value for event in curves.Scalars(f"throughput/{name}")])

    steps, examples, tokens = (values(f"{name}_per_second") for name in ("steps", "examples", "tokens"))
    assert (steps > 0).all()
    np.testing.assert_allclose(examples, 16 * steps, rtol=1e-6)
    np.testing.assert_allclose(tokens, 10 * examples, rtol=1e-6)
    flops = values("mfu") * 1e9 / steps
    np.testing.assert_allclose(flops, flops[0], rtol=1e-5)  # a step's, from XLA's count
    assert 2 * 16 * 3 * 2 < flops[0] < 5_000  # forward and backward of 16 rows with 3 features, and Adam
    assert result.executor == "looped"


def test_a_run_within_one_chunk_has_the_rates_of_the_whole(tmp_path):
    _runs.fit(epochs=1, validation_data=None, callbacks=[jc.callbacks.Throughput()], run_dir=tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(tmp_path / "logs" / "train"))
    curves.Reload()
    steps, examples = (
        [event.value for event in curves.Scalars(f"throughput/run_{name}_per_second")] for name in ("steps", "examples")
    )
    assert len(steps) == 1
    assert steps[0] > 0
    np.testing.assert_allclose(examples, 16 * steps[0], rtol=1e-6)


def step_flops(scanned):
    """What a callback reads for a network of six layers."""

    def loss_fn(params, batch):
        hidden = batch["x"]
        if scanned:
            hidden, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), hidden, params)
        else:
            for w in params:
                hidden = jnp.tanh(hidden @ w)
        return jnp.mean(hidden**2)

    seen = []

    class Read(jc.Callback):
        def on_epoch_end(self, state, metrics):
            return state, jc.actions.Call(lambda run: seen.append(run.logs["flops"]), {"flops": metrics["step_flops"]})

    rows = {"x": np.ones((32, 64), np.float32)}
    jc.fit(jnp.ones((6, 64, 64)), loss_fn, rows, optimizer=optax.sgd(0.1), epochs=1, batch_size=16, callbacks=[Read()],
           verbose=0)  # fmt: skip
    return seen[0]


def test_the_flops_of_a_step_count_scanned_layers_as_often_as_they_run():
    assert step_flops(True) == pytest.approx(step_flops(False), rel=0.15)


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v2", 22.5),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("Tesla T4", 65),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_peaks_of_known_devices(kind, teraflops):
    assert peak_flops(kind) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "kind", ["cpu", "NVIDIA H20", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "TPU v9"]
)
def test_peaks_of_other_devices_are_unknown(kind):
    assert math.isnan(peak_flops(kind))


def test_each_peak_has_a_source():
    with PEAKS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["teraflops"]) > 0 and ":" in row["source"] for row in rows if "tpu_info" not in row["source"])
    assert all(re.fullmatch(r"\d+( or \d+)?", row["gigabytes"]) for row in rows)
    assert len({row["device"] for row in rows}) == len(rows)


def test_only_the_devices_of_the_run_count():
    class Device:
        device_kind, process_index = "NVIDIA H100 80GB HBM3", 0

        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return None if self.used is None else {"bytes_in_use": self.used}

    def read(*devices):
        metrics = HostMetrics(
            {}, read=["peak_flops", "device_memory"], context=Context(None, Run(None), 0, 1), examples_per_step=1,
            step_flops=lambda: 1.0, devices=devices,
        )  # fmt: skip
        values = dict(zip(metrics.names, metrics.read(0), strict=True))
        return values["peak_flops"], values["device_memory"]

    np.testing.assert_allclose(read(Device(5), Device(7)), (2 * 989.4e12, 7))
    elsewhere = Device(9)
    elsewhere.process_index = 1
    np.testing.assert_allclose(read(Device(5), elsewhere), (2 * 989.4e12, 5))
    assert math.isnan(read(Device(None))[1])
