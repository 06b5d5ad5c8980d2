"""A run answers for the request that it was made with: what differs is refused, or named by a warning."""

import os
import re
import shutil
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _arguments import grouped
from _patience import PATIENCE

import jaxcb as jc

rng = np.random.default_rng(0)
X = rng.normal(size=(64, 3)).astype(np.float32)
Y = X @ np.float32([[1.0], [-2.0], [0.5]])
V = (X[:8], Y[:8])


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def absolute(params, batch):
    return jnp.mean(jnp.abs(batch[0] @ params["w"] - batch[1]))


def same_with_a_metric(params, batch):
    error = batch[0] @ params["w"] - batch[1]
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def callbacks(patience=9, factor=0.5):
    return [jc.EarlyStopping("loss", patience=patience), jc.ReduceLROnPlateau("loss", factor=factor, patience=9)]


def fit(run_dir, **changes):
    given = {
        "model": {"w": jnp.zeros((3, 1))}, "loss_fn": loss_fn, "train_data": (X, Y), "optimizer": optax.adam,
        "learning_rate": 0.1, "epochs": 2, "batch_size": 16, "validation_data": V, "callbacks": callbacks(),
        "run_dir": run_dir, "resume": True, "verbose": 0,
    }  # fmt: skip
    return jc.fit(**grouped(**(given | changes)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    at = tmp_path_factory.mktemp("request") / "finished"
    return at, fit(at)


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


def flipped(x):
    x = x.copy()
    x[7, 1] += 1e-3
    return x


OTHER_LENGTH = rng.normal(size=(80, 3)).astype(np.float32)

REFUSED = {
    "seed": ({"seed": 1}, "seed was 0, is 1"),
    "batch size": ({"batch_size": 8}, "batch_size was 16, is 8"),
    "rows": ({"train_data": (OTHER_LENGTH, OTHER_LENGTH[:, :1])}, "train_data had 64 rows, has 80"),
    "values": ({"train_data": (flipped(X), Y)}, "train_data had other values"),
    "dtype": ({"train_data": (X, Y.astype(np.float16))}, "train_data had other values"),
    "remainder": ({"drop_remainder": True}, "drop_remainder was False, is True"),
    "loss": ({"loss_fn": absolute}, "loss_fn computed"),
    "number in the loss": ({"loss_fn": lambda p, b: 2 * loss_fn(p, b)}, "loss_fn computed"),
    "model": ({"model": {"w": jnp.zeros((3, 1)), "b": jnp.zeros(())}}, "saved with another model or optimizer"),
    "optimizer's state": ({"optimizer": optax.sgd}, "saved with another model or optimizer"),
}

WARNED = {
    "rate": ({"learning_rate": 0.2}, "learning_rate 0.1 -> 0.2"),
    "patience": ({"callbacks": callbacks(patience=8)}, "EarlyStopping.patience 9 -> 8"),
    "factor": ({"callbacks": callbacks(factor=0.25)}, "ReduceLROnPlateau.factor 0.5 -> 0.25"),
    "order": (
        {"callbacks": callbacks()[::-1]},
        "the order of the callbacks EarlyStopping, ReduceLROnPlateau -> Reduce",
    ),
    "missing": ({"callbacks": callbacks()[:1]}, "ReduceLROnPlateau is missing"),
    "new": ({"callbacks": [*callbacks(), jc.TerminateOnNaN()]}, "TerminateOnNaN is new"),
    "epochs": ({"epochs": 3}, "epochs 2 -> 3"),
    "fewer epochs": ({"epochs": 1}, "epochs 2 -> 1"),
    "steps": ({"steps": 5}, "steps None -> 5"),
    "optimizer": ({"optimizer": lambda learning_rate: optax.adam(learning_rate, b1=0.8)}, "the optimizer"),
    "schedule": ({"learning_rate": optax.constant_schedule(0.1)}, "the optimizer"),
    "validation data": ({"validation_data": (flipped(X)[:8], Y[:8])}, "the validation data had other values"),
    "validation rows": ({"validation_data": (X[:9], Y[:9])}, "the validation data had 8 rows, has 9"),
    "a validation set": ({"validation_data": {"a": V}}, "the validation set 'a' is new"),
    "frequency": ({"validation_freq": 2}, "validation_freq 1 -> 2"),
    "a metric": ({"metrics": {"norm": jc.probes.grad_norm()}}, "metrics {} -> {'norm': 1}"),
    "executor": ({"executor": "stepped"}, "executor looped -> stepped"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_run_is_refused_with_both_values_and_a_cure(run_dir, name):
    change, text = REFUSED[name]
    for epochs in (2, 3):  # whether there is anything left to train or not
        with pytest.raises(ValueError, match=r"was (made|saved) with another") as caught:
            fit(run_dir, **({"epochs": epochs} | change))
        assert text in str(caught.value)
        assert "pass another run_dir, or checkpointing=jc.Checkpointing(overwrite=True)" in str(caught.value)


EVERYDAY = ("rate", "patience", "missing", "epochs", "validation data", "a metric")


@pytest.mark.everyday(2)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n not in EVERYDAY)) for n in WARNED])
def test_other_numbers_are_named_whatever_the_verbosity(run_dir, name):
    change, text = WARNED[name]
    with warnings.catch_warnings():
        if change.get("validation_data"):  # a name that the run no longer reports, or a new one
            warnings.simplefilter("ignore")
        with pytest.warns(RuntimeWarning, match="with another request") as caught:
            fit(run_dir, **change)
    assert any(text in str(w.message) for w in caught), [str(w.message) for w in caught]


def test_the_same_request_has_its_result_without_a_word(finished, run_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = fit(run_dir)
        np.testing.assert_array_equal(again.params["w"], finished[1].params["w"])
        fit(run_dir, train_data=(X.copy(), jnp.asarray(Y)), callbacks=tuple(callbacks()))
        fit(run_dir, loss_fn=same_with_a_metric)  # of the same loss


def test_a_rate_that_changed_applies_to_the_epochs_that_are_left(run_dir):
    result = fit(run_dir, epochs=4, learning_rate=0.2, callbacks=[])
    np.testing.assert_allclose(result.history["learning_rate"], [0.1, 0.1, 0.2, 0.2], rtol=1e-6)


def test_facts_that_a_record_lacks_are_not_compared(run_dir):
    """Those of an earlier version: without `request`."""
    from storage.test_forged import opened, seal

    for path in run_dir.glob("*/step_*/manifest.json"):
        manifest = opened(path)
        del manifest["facts"]["config"]["request"]
        path.write_bytes(seal(manifest))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(run_dir, train_data=(flipped(X), Y), loss_fn=absolute)


def test_a_callbacks_field_that_a_record_lacks_is_not_compared(run_dir):
    """An argument that a later version added. The finished run has its result, and no warning."""
    from storage.test_forged import opened, seal

    for path in run_dir.glob("*/step_*/manifest.json"):
        manifest = opened(path)
        recorded = manifest["facts"]["config"]["callbacks"]
        words = recorded["EarlyStopping"]
        recorded["EarlyStopping"] = re.sub(r", min_delta=[^,)]+", "", words)
        assert recorded["EarlyStopping"] != words
        path.write_bytes(seal(manifest))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(fit(run_dir).history["loss"]) == 2
    with pytest.warns(RuntimeWarning, match="EarlyStopping.patience 9 -> 8"):
        fit(run_dir, callbacks=callbacks(patience=8))


def test_large_arrays_are_sampled_and_lists_of_batches_counted():
    from jaxcb._src.checkpointing.request import data_facts

    large = np.zeros((500_000, 3), np.float32)
    first = data_facts(large)
    large[-1, -1] = 1
    assert data_facts(large) != first
    assert data_facts(jnp.asarray(large)) == data_facts(large)
    batches = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 64, 8)]
    assert data_facts(batches) == data_facts([*batches]) != data_facts(batches[:-1])
    for none in (iter(batches), lambda: batches, 3, "text", [object()], {"a": np.asarray([object()])}):
        found = data_facts(none)
        assert found is None or found.get("hash") is None


SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
from checkpointing.test_request import fit
fit(sys.argv[1])
"""


@pytest.mark.long
def test_the_hashes_are_those_of_any_process(run_dir):
    tests = os.path.dirname(os.path.dirname(__file__))
    path = os.pathsep.join([os.path.dirname(tests), tests])
    for seed in "12":
        env = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", SCRIPT, str(run_dir)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=2 * PATIENCE)
        assert done.returncode == 0, done.stderr


def test_a_new_loss_is_a_new_run_for_a_loop_of_ones_own(tmp_path):
    """A training step that a user wrote has no loss to compare: it is named by a warning."""

    def run(scale):
        def step(state, batch):
            loss, grads = jax.value_and_grad(lambda p: scale * loss_fn(p, batch))(state.params)
            return state.apply_gradients(grads), {"loss": loss}

        state = jc.TrainState.create(params={"w": jnp.zeros((3, 1))}, tx=optax.sgd(0.1))
        return jc.Loop(step).run(state, (X, Y), epochs=1, batch_size=16, run_dir=tmp_path, resume=True, verbose=0)

    run(1.0)
    with pytest.warns(RuntimeWarning, match="with another request: train_step"):
        run(2.0)


def test_another_sweep_is_refused_or_named(tmp_path):
    def sweep(**over):
        return jc.sweep(
            {"w": jnp.zeros((3, 1))}, loss_fn, (X, Y), over=over, optimizer=optax.adam, epochs=1, batch_size=16,
            run_dir=tmp_path, resume=True, verbose=0,
        )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep(**{"optimizer.learning_rate": [0.1, 0.2]})
        sweep(**{"optimizer.learning_rate": [0.1, 0.2]})
    with pytest.warns(RuntimeWarning, match="the numbers of the members"):
        sweep(**{"optimizer.learning_rate": [0.1, 0.3]})
    with pytest.raises(ValueError, match=r"seed was \[0, 0\], is \[0, 1\]"):
        sweep(**{"optimizer.learning_rate": [0.1], "seed": [0, 1]})
