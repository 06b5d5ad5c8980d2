"""Metrics that merge by themselves, as clu's and metrax's do."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop import _runs

import jaxcb as jc

EXECUTORS = ("looped", "stepped")


@flax.struct.dataclass
class Largest:
    """The largest error: no mean of batches gives it."""

    value: jax.Array

    def merge(self, other):
        return Largest(jnp.maximum(self.value, other.value))

    def compute(self):
        return self.value


def loss_fn(params, batch):
    x, y = batch
    error = x @ params["w"] + params["b"] - y
    return jnp.mean(error**2), {"largest": Largest(-jnp.max(jnp.abs(error)))}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("streamed", [False, True])
def test_they_are_merged_over_an_epoch_and_a_validation(executor, streamed):
    x, y = _runs.make_data(20, seed=1)
    held = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 20, 8)] if streamed else (x, y)
    seen = []

    class Steps(jc.Callback):
        def on_batch_end(self, state, metrics):
            return state, jc.actions.LogCSV({"v": metrics["largest"]}, {"v": jnp.ones((), bool)}, "steps.csv")

    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        result = _runs.fit(
            executor, loss_fn=loss_fn, epochs=3, validation_data=held, validation_batch_size=None if streamed else 8,
            callbacks=[Steps()], run_dir=directory,
        )  # fmt: skip
        rows = (Path(directory) / "steps.csv").read_text().splitlines()[1:]
        seen = np.asarray([float(row.split(",")[-1]) for row in rows]).reshape(3, 5)
    np.testing.assert_allclose(result.history["largest"], seen.max(axis=1), rtol=1e-6)  # of negative numbers
    error = x @ result.params["w"] + result.params["b"] - y
    by_batch = [np.abs(error[i : i + 8]).max() for i in range(0, 20, 8)]
    np.testing.assert_allclose(result.history["val_largest"][-1], -min(by_batch), rtol=1e-5)


def test_evaluate_merges_too():
    x, y = _runs.make_data(20, seed=1)
    params = _runs.make_params()
    error = np.abs(x @ params["w"] + params["b"] - y)
    found = jc.evaluate(params, loss_fn, (x, y), batch_size=8)["largest"]
    np.testing.assert_allclose(found, -min(error[i : i + 8].max() for i in range(0, 20, 8)), rtol=1e-5)


def test_members_merge_their_own():
    states = [_runs.make_state(seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    from jaxcb._src.writers.history import HistoryWriter

    def history(state, members=None):
        driver = _runs.make_driver([], state, members=members, epochs=2, step=jc.Step(loss_fn))
        driver.train()
        return driver.writer(HistoryWriter).history["largest"]

    together = history(stacked, 2)
    for i, state in enumerate(states):
        np.testing.assert_allclose(together[:, i], history(state), rtol=1e-5)


@pytest.mark.parametrize("library", ["clu.metrics", "metrax"])
def test_with_the_real_ones(library):
    metrics = pytest.importorskip(library, reason=f"{library} is not installed here")

    def classify(params, batch):
        x, y = batch
        labels = (y[:, 0] > 0).astype(jnp.int32)
        logits = jnp.concatenate([-(x @ params["w"]), x @ params["w"]], axis=-1)
        loss = -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1))
        if library == "metrax":
            accuracy = metrics.Accuracy.from_model_output(predictions=logits.argmax(-1), labels=labels)
        else:
            accuracy = metrics.Accuracy.from_model_output(logits=logits, labels=labels)
        return loss, {"accuracy": accuracy, "plain": (logits.argmax(-1) == labels).mean()}

    result = _runs.fit(loss_fn=classify, epochs=3, callbacks=[jc.EarlyStopping("val_accuracy", patience=9)])
    for prefix in ("", "val_"):
        np.testing.assert_allclose(result.history[f"{prefix}accuracy"], result.history[f"{prefix}plain"], rtol=1e-5)


def test_one_that_cannot_be_computed_in_a_program_is_refused_before_the_first_step():
    @flax.struct.dataclass
    class OnTheHost(Largest):
        def compute(self):
            return float(self.value)

    with pytest.raises(jax.errors.ConcretizationTypeError) as caught:
        _runs.fit(loss_fn=lambda p, b: (_runs.loss_fn(p, b)[0], {"odd": OnTheHost(jnp.ones(()))}))
    assert any("one of the metrics 'odd', which must run under jit" in note for note in caught.value.__notes__)


@flax.struct.dataclass
class Widening:
    """Its merge returns another dtype."""

    n: jax.Array

    def merge(self, other):
        return Widening(self.n + other.n * 1.0)

    def compute(self):
        return self.n.astype(jnp.float32)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_merge_that_changes_the_dtype_is_refused(executor):
    def step(state, batch):
        return state, {"count": Widening(jnp.int32(3))}

    state = jc.TrainState.create(params={"w": jnp.zeros(())})
    with pytest.raises(TypeError, match=r"merge\(\) of the metric 'count'.n has dtype float32, expected int32"):
        jc.Loop(step).run(
            state, np.ones((8, 1), np.float32), epochs=1, batch_size=4, verbose=0,
            execution=jc.Execution(executor=executor),
        )  # fmt: skip
