"""What a run costs the host: dispatches, reads and traces, counted."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _compilations import counting
from loop._runs import control, fit, loss_fn, make_data, make_driver, make_state

import jaxcb as jc

EPOCHS = 6


def five_callbacks(tmp_path):
    return [
        *control()[1:],
        jc.EarlyStopping(patience=50, restore_best_weights=True),
        jc.CSVLogger(str(tmp_path / "log.csv")),
    ]


@pytest.fixture
def reads(monkeypatch):
    """Counts fetches, and reads of single arrays outside of them."""
    counts = collections.Counter()
    array = type(jnp.zeros(()))
    value, get = array._value, jax.device_get  # pyright: ignore[reportAttributeAccessIssue]
    inside = []

    def counted_value(self):
        if not inside:
            counts["stray"] += 1
        return value.fget(self)

    def counted_get(tree):
        counts["fetch"] += 1
        inside.append(1)
        try:
            return get(tree)
        finally:
            inside.pop()

    monkeypatch.setattr(array, "_value", property(counted_value))
    monkeypatch.setattr(jax, "device_get", counted_get)
    return counts


@pytest.mark.parametrize("rows", [64, 160])
def test_a_looped_epoch_is_one_dispatch_and_one_read_whatever_its_steps(rows, reads, tmp_path):
    steps = rows // 16
    driver = make_driver(
        five_callbacks(tmp_path), make_state(), epochs=EPOCHS, data=make_data(rows), steps_per_execution=steps
    )
    reads.clear()
    driver.train()
    # one an epoch, those of the run's begin and end, and where one was dispatched ahead at the end that one's
    assert reads["fetch"] in (EPOCHS + 2, EPOCHS + 3)
    assert set(reads) == {"fetch"}
    # one ahead had nothing left to do
    assert driver.device.executor.dispatches <= EPOCHS + 3
    assert int(driver.device.live.carry().step) == EPOCHS * steps


def test_a_stepped_epoch_is_one_dispatch_a_step_and_few_reads(reads, tmp_path):
    rows, steps = 640, 40
    callbacks = five_callbacks(tmp_path)
    driver = make_driver(
        callbacks, make_state(), executor="stepped", epochs=EPOCHS, data=make_data(rows), steps_per_execution=steps
    )
    reads.clear()
    driver.train()
    total = EPOCHS * steps
    assert int(driver.device.live.carry().step) == total
    # an epoch's opening, its boundary and fresh rings come to its steps
    assert driver.device.executor.dispatches <= total + 3 * (EPOCHS + 2) + 2
    assert reads["fetch"] <= EPOCHS + 4
    assert reads["stray"] <= total / 4


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_a_run_traces_its_step_once_a_batch_shape_and_each_hook_once(executor):
    traces = collections.Counter()

    def counted_loss(params, batch):
        traces[f"loss {batch[0].shape[0]}"] += 1
        return loss_fn(params, batch)

    class Counted(jc.Callback):
        def on_train_begin(self, state, metrics):
            traces["on_train_begin"] += 1
            return state, None

        def on_epoch_begin(self, state, metrics):
            traces["on_epoch_begin"] += 1
            return state, jc.actions.SetLearningRate(0.01 / (1 + metrics.epoch))

        def on_batch_end(self, state, metrics):
            traces["on_batch_end"] += 1
            return state, jc.actions.ScaleLearningRate(0.9, when=metrics.step % 7 == 0)

        def on_eval_end(self, state, metrics):
            traces["on_eval_end"] += 1
            return state, None

        def on_epoch_end(self, state, metrics):
            traces["on_epoch_end"] += 1
            return state, None

        def on_train_end(self, state, metrics):
            traces["on_train_end"] += 1
            return state, None

    driver = make_driver(
        [Counted(), *control()],
        make_state(),
        executor=executor,
        epochs=5,
        steps_per_execution=3,
        step=jc.Step(counted_loss),
    )
    driver.train()
    # 70 rows in batches of 16 leave one of 6
    assert traces.pop("loss 16") == 1
    assert traces.pop("loss 6") == 1
    assert set(traces.values()) == {1}, traces


def test_no_dtype_of_the_callers_costs_a_second_trace():
    traces = []

    def counted_loss(params, batch):
        traces.append(1)
        return loss_fn(params, batch)

    x, y = make_data(64)
    weak = {"w": jnp.asarray([[0.1], [0.2], [0.3]]), "b": jnp.asarray(0.0)}
    fit(model=weak, data=(x.astype(np.float64), y), loss_fn=counted_loss, epochs=3, validation_data=None, callbacks=[])
    assert len(traces) == 1


@pytest.mark.parametrize(("executor", "programs"), [("looped", 2), ("stepped", 5)])
def test_arrays_and_numbers_of_the_host_compile_no_programs(executor, programs, tmp_path):
    """A run compiles its own programs alone: its first state and its steps; step by step the ends of an epoch, too."""

    def loss(params, batch):
        return jnp.mean((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2)

    def train(rows, features, **more):
        x = np.ones((rows, features), np.float32)
        model = {"w": np.zeros((features, 1), np.float32), "b": 0.0}
        given = {"epochs": 2, "data": (x, x[:, :1]), "model": model, "validation_data": (x[:9], x[:9, :1])}
        return fit(executor, loss_fn=loss, batch_size=8, callbacks=[], **(given | more))

    def resume(run_dir, *shape):
        train(*shape, run_dir=run_dir, epochs=1, resume=True)
        with counting() as counts, pytest.warns(RuntimeWarning, match="epochs 1 -> 2"):
            train(*shape, run_dir=run_dir, resume=True)
        return counts["compiled"]

    jc.clear_caches()
    resume(tmp_path / "other", 24, 2)  # numbers, seeds, the learning rate
    with counting() as counts:
        train(40, 11)
    assert counts["compiled"] == programs
    assert resume(tmp_path / "run", 40, 11) == 1  # the order of the rows


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_a_completed_run_lowers_no_steps(executor, tmp_path):
    def train():
        return fit(executor, epochs=1, callbacks=[], run_dir=tmp_path, resume=True)

    train()
    train()  # operations outside of the run's programs, which are kept by JAX
    jc.clear_caches()
    with counting() as counts:
        train()
    assert counts["lowered"] == 2  # the first state, and the order of the rows
