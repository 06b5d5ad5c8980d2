"""The loggers by step: when they report what, and which arguments they refuse."""

from pathlib import Path

import jax.numpy as jnp
import pytest

import jaxcb as jc
from jaxcb._src.callbacks.options import Options


def nothing(step, values):
    pass


LOGGERS = {
    "LogTo": lambda **more: jc.callbacks.LogTo(nothing, **more),
    "JSONLogger": lambda **more: jc.callbacks.JSONLogger("log.jsonl", **more),
    "RemoteMonitor": jc.RemoteMonitor,
    "WandbLogger": jc.callbacks.WandbLogger,
    "MLflowLogger": jc.callbacks.MLflowLogger,
}
each = pytest.mark.parametrize("make", LOGGERS.values(), ids=LOGGERS)


def fresh(action):
    return {name for name, new in action.fresh.items() if bool(new)}


@each
def test_a_report_at_each_epoch_and_each_validation_in_its_middle(make):
    logger = make()
    assert logger.hooks() - {"on_train_begin"} == {"on_eval_end", "on_epoch_end"}
    metrics = jc.Metrics({"loss": 0.5, "val_loss": None, "confusion": jnp.zeros((2, 2))}, closes_epoch=False)
    _, action = logger.on_epoch_end((), metrics)
    assert bool(action.when)
    arrays = {"confusion"} if isinstance(logger, jc.callbacks.JSONLogger) else set()
    assert set(action.values) == {"loss", "val_loss"} | arrays, "arrays stay out of what takes numbers"
    assert fresh(action) == {"loss"} | arrays
    assert bool(logger.on_eval_end((), metrics)[1].when)
    # at the end of an epoch it is the epoch's own report that holds the validation
    assert not bool(logger.on_eval_end((), metrics.replace(closes_epoch=jnp.bool_(True)))[1].when)


@each
def test_every_n_steps_a_report_of_the_steps_own_values(make):
    logger = make(every=3)
    assert logger.hooks() - {"on_train_begin"} == {"on_batch_end", "on_eval_end", "on_epoch_end"}
    for step in range(1, 8):
        _, action = logger.on_batch_end((), jc.Metrics({"loss": 0.5, "learning_rate": 0.1}, step=step))
        assert bool(action.when) == (step in (3, 6))
    assert set(action.values) == {"batch_loss", "learning_rate"}, "a step's loss is not the epoch's"


@each
@pytest.mark.parametrize("every", [0, -1, 1.5, "step", True])
def test_another_cadence_is_refused(make, every):
    with pytest.raises(ValueError, match=r"every must be .*, got"):
        make(every=every)


@each
def test_loggers_of_equal_arguments_are_one_program(make):
    assert make(every=2) == make(every=2)
    assert hash(make(every=2)) == hash(make(every=2))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jc.callbacks.LogTo(3), "LogTo: fn must be a function"),
        (lambda: jc.callbacks.JSONLogger(3), "JSONLogger: filename must be a path, got 3"),
        (lambda: jc.RemoteMonitor(headers=["a"]), "headers must be a dict of strings"),
        (lambda: jc.RemoteMonitor(headers={"a": 1}), "headers must be a dict of strings"),
        (lambda: jc.RemoteMonitor(3), "root and path must be strings"),
        (lambda: jc.callbacks.MLflowLogger(tags=["a"]), "tags must be a dict"),
        (lambda: jc.callbacks.MLflowLogger(3), "experiment must be a string that is not empty, got 3"),
    ],
)
def test_arguments_of_another_kind_are_refused(make, says):
    with pytest.raises(TypeError, match=says):
        make()


@pytest.mark.parametrize(
    ("root", "path"),
    [
        ("localhost:9000", "/a"),
        ("file:///etc", "/a"),
        ("http://", "/a"),
        ("http://good.example", "@elsewhere.example/a"),
        ("http://good.example", ".elsewhere.example/a"),
        ("http://good.example:8", "080/a"),
        ("http://good.example:no", "/a"),
    ],
)
def test_what_is_no_address_of_one_server_is_refused(root, path):
    with pytest.raises(ValueError, match=r"root \+ path must be an address"):
        jc.RemoteMonitor(root, path)


@pytest.mark.parametrize("more", [{"timeout": 0}, {"timeout": float("inf")}, {"queue_size": 0}])
def test_numbers_out_of_range_are_refused(more):
    with pytest.raises(ValueError, match=f"{next(iter(more))} must be"):
        jc.RemoteMonitor(**more)


def test_paths_may_be_path_objects():
    assert jc.callbacks.JSONLogger(Path("a") / "b.jsonl").filename == "a/b.jsonl"


def test_options_compare_by_what_they_hold():
    layers = {"config": {"layers": [1, 2]}, "mode": "offline"}
    assert Options(layers) == Options({**layers, "config": {"layers": [1, 2]}})
    assert hash(Options(layers)) == hash(Options({**layers, "config": {}}))
    assert Options(layers) != Options({**layers, "config": {"layers": [1]}})
    assert Options(layers) != Options({"mode": "offline"})
    array = jnp.zeros(2)
    assert Options({"a": array}) == Options({"a": array})
    assert Options({"a": array}) != Options({"a": jnp.zeros(2)}), "arrays compare by identity"
