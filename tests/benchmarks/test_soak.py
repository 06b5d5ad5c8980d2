"""Runs leave nothing in the process: the short form of `benchmarks/soak.py`."""

import gc
import importlib
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc

RUNS = 6
OBJECTS = 1500  # of a run whose program is kept for later ones; `soak.py` measures once no more are kept
X = np.ones((8, 1), np.float32)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not list descriptors")
def test_runs_leave_no_descriptors_and_no_threads(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    soak = importlib.import_module("soak")
    for number in range(3):
        soak.run(number, tmp_path)
    before = soak.figures()
    for number in range(3, RUNS):
        soak.run(number, tmp_path)
    after = soak.figures()
    assert after.descriptors <= before.descriptors
    assert after.threads <= before.threads
    assert after.objects - before.objects <= OBJECTS * (RUNS - 3)


class Large:
    """Stands for arrays in the closure of a function of the user."""


def refers(fn, to):
    """Returns the function with a reference to an object in its closure."""

    def call(*args, **kwargs):
        assert to is not None
        return fn(*args, **kwargs)

    return call


def factory(learning_rate):
    return optax.sgd(learning_rate)


def squares(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def fit_once(executor, ready_made):
    """Trains with functions that refer to large objects; returns weak references to these."""
    found = {name: Large() for name in ("loss", "optimizer", "schedule", "probe")}
    schedule = refers(optax.constant_schedule(0.1), found["schedule"])
    optimizer = optax.adam(schedule) if ready_made else lambda learning_rate: refers(factory, found)(learning_rate)
    result = jc.fit(
        {"w": jnp.zeros((1, 1))},
        refers(squares, found["loss"]),
        (X, X),
        optimizer=optimizer,
        learning_rate=None if ready_made else schedule,
        epochs=2,
        batch_size=4,
        validation_data=(X, X),
        metrics={"norm": jc.probe(refers(lambda p: jnp.sum(p.grads["w"] ** 2), found["probe"]))},
        callbacks=[jc.EarlyStopping(restore_best_weights=True), jc.ReduceLROnPlateau(), jc.SwapEMAWeights(decay=0.5)],
        execution=jc.Execution(executor=executor),
        verbose=0,
    )
    assert result.history["norm"].shape == (2,)
    return {name: weakref.ref(value) for name, value in found.items()}


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", ["looped", "stepped"])
@pytest.mark.parametrize("ready_made", [False, True])
def test_a_run_keeps_nothing_that_its_functions_refer_to(executor, ready_made):
    """JAX keeps structures, and kept programs keep traces; neither may refer to the user's functions."""
    known = fit_once(executor, ready_made)
    gc.collect()
    assert [name for name, value in known.items() if value() is not None] == []


class Held(jc.Struct):
    """A state that refers to a function of the user."""

    inner: Any
    fn: Any = jc.static()


def optimizer_of(to, *, held=False):
    """An optimizer whose functions refer to an object, and its state, too, if it is `held`."""
    tx = optax.sgd(0.1)
    init, update = refers(tx.init, to), refers(tx.update, to)
    if not held:
        return optax.GradientTransformation(init, update)

    def held_update(updates, state, params=None):
        new, inner = update(updates, state.inner, params)
        return new, Held(inner, state.fn)

    return optax.GradientTransformation(lambda params: Held(init(params), refers(len, to)), held_update)


def search(to):
    rows = jax.ShapeDtypeStruct((64, 1), jnp.float32)
    given = {"optimizer": optimizer_of(to), "memory": 10**7, "resident": False, "multiple_of": 16}
    jc.search.largest_batch_size({"w": jnp.ones((1, 1))}, lambda p, b: jnp.mean((b @ p["w"]) ** 2), rows, **given)


def scan(to):
    def step(state):
        return state.replace(inner=state.fn(state.inner)), {"loss": state.inner}

    jc.scan([jc.EarlyStopping("loss")], step, Held(jnp.zeros(()), refers(lambda x: x + 1, to)), 3)


def held_by_the_optimizer(to):
    jc.fit(
        {"w": jnp.zeros((1, 1))}, squares, (X, X), optimizer=optimizer_of(to, held=True), epochs=1, batch_size=4,
        callbacks=[jc.callbacks.ModelSummary()], verbose=0,
    )  # fmt: skip
    jc.clear_caches()  # a kept program knows the structure of the state


@pytest.mark.parametrize("use", [search, scan, held_by_the_optimizer])
def test_no_cache_of_jax_refers_to_what_a_state_refers_to(use, capsys):
    large = Large()
    known = weakref.ref(large)
    use(large)
    del large
    gc.collect()
    assert known() is None
