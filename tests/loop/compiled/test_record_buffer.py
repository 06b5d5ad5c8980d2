"""The record buffers: what several callbacks log is stored once, and each gets its own record."""

import csv
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc
from jaxcb._src.loop.host.driver import Driver
from jaxcb._src.utils.xla import equal_outputs

X = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)


def loss_fn(params, x):
    return jnp.mean((x @ params["w"] - 1) ** 2), {"largest": jnp.abs(x).max()}


def fit(callbacks, **arguments):
    arguments = {"epochs": 3, "batch_size": 8, "validation_data": X, "verbose": 0, **arguments}
    return jc.fit({"w": jnp.zeros(3)}, loss_fn, X, optimizer=optax.sgd(0.1), callbacks=callbacks, **arguments)


def compiled_chunk(monkeypatch, callbacks):
    """The text of the compiled chunk, and the bytes that a row of each buffer takes."""
    found = []

    def train(self):
        device = self.device
        inputs = device._without_steps(np.zeros(len(self._host_metrics.names), np.float32))
        found.append(device.executor._chunk.lower(device.live, inputs).compile().as_text())
        buffers = device.program.buffers
        widths = {
            name: sum(x.size for x in ring.rows.values()) // (buffers.layouts[name].capacity + 1)
            for name, ring in jax.eval_shape(device.program.chunk_buffers).items()
        }
        found.append(widths)
        real(self)

    real = Driver.train
    with monkeypatch.context() as patched:
        patched.setattr(Driver, "train", train)
        fit(callbacks, execution=jc.Execution(executor="looped"))
    text, rows = found
    return len(re.findall(r"\bfusion\(", text)), rows


@pytest.mark.everyday(1)
@pytest.mark.parametrize("make", [lambda i: jc.CSVLogger(f"{i}.csv"), lambda i: jc.callbacks.JSONLogger(f"{i}.jsonl")])
def test_ten_loggers_cost_as_many_kernels_and_bytes_as_one(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = compiled_chunk(monkeypatch, [make(0)])
    ten = compiled_chunk(monkeypatch, [make(i) for i in range(10)])
    assert ten == one
    assert one[0] > 20


@pytest.mark.parametrize("executor", ["looped", "stepped"])
def test_each_logger_has_its_own_rows(executor, tmp_path):
    """Equal arrays come back to each action, and those that only look alike are kept apart."""
    twice = jc.make_callback(
        on_epoch_end=lambda state, metrics: (
            state,
            (
                jc.actions.Print("a {x:g} {y:g}", values={"x": metrics["loss"], "y": 2 * metrics["loss"]}),
                jc.actions.Print("b {x:g} {y:g}", values={"x": 2 * metrics["loss"], "y": metrics["loss"]}),
                jc.actions.Print("c {x:g}", values={"x": metrics["loss"]}, when=metrics.epoch == 1),
            ),
        ),
        name="twice",
    )
    lines = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("builtins.print", lambda *line, **_: lines.append(" ".join(map(str, line))))
        result = fit(
            [jc.CSVLogger(tmp_path / "a.csv"), twice, jc.CSVLogger(tmp_path / "b.csv")],
            execution=jc.Execution(executor=executor),
        )
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_array_equal([np.float32(row["loss"]) for row in rows], result.history["loss"])
    expected = []
    for epoch, loss in enumerate(map(np.float32, result.history["loss"])):
        expected += [f"a {loss:g} {2 * loss:g}", f"b {2 * loss:g} {loss:g}"] + [f"c {loss:g}"] * (epoch == 1)
    assert [line for line in lines if line[:2] in ("a ", "b ", "c ")] == expected


def test_equal_outputs_are_those_that_are_computed_alike():
    def fn(x, y):
        return x, x + y, y + x, x + y, jnp.where(x > 0, x, y), jnp.where(x > 0, x, y), 1.0, True, 1.0, -0.0, 0.0, x

    found = equal_outputs(jax.jit(fn).trace(jnp.float32(1), jnp.float32(2)).jaxpr.jaxpr)
    assert found == (0, 1, 2, 1, 4, 4, 6, 7, 6, 9, 10, 0)


def test_random_numbers_and_effects_are_told_apart():
    def fn(x):
        a, b = (jax.random.normal(jax.random.key(seed)) for seed in (0, 1))
        c, d = (jax.pure_callback(lambda x: np.asarray(x), x, x, vmap_method="sequential") for _ in range(2))
        return a, b, c, d, jax.random.normal(jax.random.key(0))

    found = equal_outputs(jax.jit(fn).trace(jnp.float32(1)).jaxpr.jaxpr)
    assert found[:4] == (0, 1, 2, 3)
    assert found[4] in (0, 4)
