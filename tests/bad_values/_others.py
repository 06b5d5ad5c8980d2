"""Values that the functions around a run must refuse: of models, optimizers, search, replay, writers and tests."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from bad_values._training import CALLBACKS, LOSS_FN, MODEL, RATE, SEED, TRAINABLE, weights
from bad_values._values import (
    BOOL,
    CHOICE,
    COUNT,
    FIELD,
    FUNCTION,
    KEY,
    NUMBER,
    PATH,
    SINGLE,
    VECTOR,
    X,
    given,
    without,
)

import jaxcb as jc
import jaxcb.testing
from jaxcb._src.history.history import RunHistory

NET, STOP = nn.Dense(1), jc.EarlyStopping("loss")
HISTORY = RunHistory()
HISTORY.add(1, 0, {"loss": 0.5}, {"loss": True})
RESULT = jc.Result(jc.TrainState.create(params={}), None, HISTORY, None, None, {}, "looped", None, ())
NO_CHOICES = [None, 3, "abc", [1], VECTOR, KEY, len, {3: [1]}, {"seed": 3}, {"seed": "abc"}, {"seed": KEY}]
NO_ACTIONS = [3, "abc", [3], object(), jc.actions.Stop, KEY]
NO_RECORDS = [
    None, 3, 0.5, KEY, VECTOR, object(), len, {}, [], {"loss": []}, {"loss": 1.0}, {"loss": ["a"]}, [3],
    [{"loss": "a"}], {"loss": [1.0], "acc": [1.0, 2.0]}, {"loss": [[1.0]]}, {"loss": [KEY]},
]  # fmt: skip
PROBE = {"every": FIELD, "per_layer": BOOL}
LAWS = [
    law
    for law in jaxcb.testing.__all__
    if law.startswith("check_") and law not in ("check_callback", "check_population")
]
NO_CALLBACK = [None, 3, "abc", KEY]
DRAWS = ((jc.search.uniform, []), (jc.search.log_uniform, [0, -1]), (jc.search.integers, [0.5, 2.5, 1e30]))
LINEN_VARIABLES = [3, "abc", [1], KEY, {}, {"batch_stats": {}}]


def linen(**more):
    return jc.linen(more.pop("module", NET), more.pop("inputs", X), **more)


FUNCTIONS = {
    "adjustable_lr": (
        given(jc.adjustable_lr, factory=optax.adam, learning_rate=0.1),
        {
            "learning_rate": [*RATE[:4], "0.1", None, VECTOR, KEY, [0.1], lambda count: None, lambda count: X],
            "factory": [3, "adam", None, optax.sgd(0.1), KEY],
            "hyperparameters": [3, "abc", [1], {3: 1.0}, {"b1": "a"}, {"b1": math.nan}, {"nothing": 1.0}, KEY],
            "name": [3, [], {}, KEY, VECTOR],
        },
    ),
    "apply": (
        given(jc.apply, actions=None, state=jc.TrainState.create(params=weights())),
        {"actions": NO_ACTIONS, "state": [None, 3, {}, weights()]},
    ),
    "chain": (lambda callbacks: jc.chain(callbacks), {"callbacks": CALLBACKS}),
    **{name: (getattr(jc, name), {"actions": NO_ACTIONS}) for name in ("fired", "stop_requested", "stop_reasons")},
    "make_callback": (
        given(jc.make_callback, on_epoch_end=lambda s, m: (s, None)),
        {"init": [3, "abc", [1], KEY], "name": ["", 3, [], KEY], "on_epoch_end": [3, "abc", None, KEY, VECTOR]},
    ),
    "probe": (given(jc.probe, fn=len), {"every": COUNT[:7], "fn": [3, "norm", None]}),
    **{
        f"probes.{kind}": (getattr(jc.probes, kind), PROBE)
        for kind in ("grad_norm", "param_norm", "update_norm", "update_ratio")
    },
    **{f"probes.{kind}": (getattr(jc.probes, kind), {"fn": FUNCTION}) for kind in ("evaluator", "host_metric")},
    "probes.reported": (given(jc.probes.reported, value=1.0), {"when": [1, 0.5, VECTOR, jnp.ones(2, bool)]}),
    "replay": (
        given(jc.replay, callbacks=[STOP], source={"loss": [1.0, 2.0]}),
        {
            "callbacks": [*CALLBACKS, None, KEY, VECTOR],
            "source": NO_RECORDS,
            "learning_rate": [*RATE[:4], "0.1", VECTOR, KEY, [0.1], lambda count: None],
            "over": [3, "abc", {"loss": [1]}, {"callbacks.EarlyStopping.patience": []}, [], {}, KEY, VECTOR, len],
        },
    ),
    "logs.read_log": (given(jc.logs.read_log, source={"loss": [1.0, 2.0]}), {"source": NO_RECORDS}),
    "logs.log_format": (
        given(jc.logs.log_format, name="mine", matches=len),
        {"name": [None, 3, "", b"mine", VECTOR], "matches": [None, 3, "*.csv", VECTOR]},
    ),
    "load": (given(jc.load, path="nowhere"), {"path": [*PATH, None], "what": CHOICE}),
    "search.grid": (
        given(jc.search.grid, over={"seed": [0]}),
        {"over": [*NO_CHOICES, {"": [1]}, {"seed": {"a": 1}}, {"seed": {1}}, {"seed": None}]},
    ),
    "search.draws": (
        given(jc.search.draws, n=2, over={"seed": jc.search.integers(0, 9)}),
        {"n": COUNT, "seed": SEED, "over": [*NO_CHOICES, {"seed": []}, {"seed": {}}]},
    ),
    **{
        f"search.{draw.__name__}": (
            given(draw, low=1, high=3),
            {"low": [*NUMBER, 3, 4, *wrong], "high": [*NUMBER, 1, 0, *wrong]},
        )
        for draw, wrong in DRAWS
    },
    "model_summary": (
        given(jc.model_summary, model=weights()),
        {
            "model": [*MODEL[:8], np.float32],
            "depth": without(COUNT, SINGLE),
            "loss_fn": without(LOSS_FN[:3], None),
            "batch": [3, "abc", object()],
            "trainable": [x for x in TRAINABLE if not isinstance(x, dict)],
        },
    ),
    "Recorder": (jc.Recorder, {"run_dir": PATH, "verbose": CHOICE, "callbacks": [3, "abc", KEY]}),
    "Result.plot": (RESULT.plot, {"path": PATH, "names": [3, 0.5, [], "los", ["los"], [3], KEY, VECTOR, len]}),
    "linen": (
        linen,
        {
            "seed": [-1, 1.5, "3", VECTOR, None, [1], object()],
            "rngs": ["dropout", 3, [3], None],
            "eval_module": [3, "abc", object()],
            "module": [None, 3, "abc", object(), KEY],
            "inputs": [None, "abc", object(), len],
            "variables": LINEN_VARIABLES,
        },
    ),
    "with_state": (
        given(jc.with_state, model=weights(), state={"a": jnp.zeros(())}),
        {"model": [*without(MODEL, None), None], "state": [None, "abc", object(), {}, [], len]},
    ),
    "models.AllBut": (lambda filters: jc.models.AllBut(filters), {"filters": [3, 0.5, None, {}, [], KEY, VECTOR]}),
    "models.adapt": (
        given(jc.models.adapt, model=weights()),
        {"model": MODEL, "copy": BOOL, "trained": [3, "abc", [3], (3,), None]},
    ),
    "models.Linen": (
        given(jc.models.Linen, module=NET, variables={"params": weights()}),
        {"variables": LINEN_VARIABLES, "rngs": ["dropout", 3, [3], None]},
    ),
    "distributed.initialize": (
        given(jc.distributed.initialize, coordinator_address="localhost:1", num_processes=2, process_id=0),
        {
            "coordinator_address": ["", 3, "nowhere", [], KEY],
            "num_processes": COUNT,
            "process_id": [-1, 2, 1.5, "a", True, KEY, VECTOR],
            "heartbeat_timeout_seconds": [*COUNT, None],
        },
    ),
    "writers.HTTPTracker": (
        given(jc.writers.HTTPTracker, url="http://localhost:9000"),
        {
            "url": [None, 3, "", "nowhere", "ftp://x", [], KEY],
            "field": ["", 3, [], KEY],
            "headers": [3, "abc", [1], {3: "a"}, KEY, None],
            "timeout": [0, -1, *NUMBER],
        },
    ),
    "writers.writer": (lambda actions: jc.writers.writer(actions), {"actions": [3, "abc", None, int, [], KEY]}),
    "writers.writer_for": (jc.writers.writer_for, {"action": [3, None, "abc", KEY, jc.actions.Stop()]}),
    "testing.drive": (
        given(jaxcb.testing.drive, callback=STOP, metrics={"loss": [1.0]}),
        {
            "callback": [None, 3, "abc", jc.EarlyStopping, KEY],
            "metrics": NO_RECORDS,
            "steps_per_epoch": FIELD,
            "learning_rate": [*RATE[:4], "0.1", None, VECTOR, KEY],
            "validate": BOOL,
        },
    ),
    **{
        f"testing.{law}": (given(getattr(jaxcb.testing, law), callback=STOP), {"callback": NO_CALLBACK}) for law in LAWS
    },
    "testing.check_callback": (
        given(jaxcb.testing.check_callback, callback=STOP),
        {"callback": NO_CALLBACK, "metrics": [3, 0.5], "max_examples": FIELD},
    ),
}
# Errors that say it in other words.
SAID = {
    "train_data": "data",
    "data": "data|evaluate",
    "x": "data|predict",
    "model_fn": "model",
    "source": "to replay|column|record|source",
    "metrics": "metrics|to replay|column|record|source",
    "factory": "adjustable_lr takes a function",
    "filters": "AllBut",
    "callback": "callback",
    "fn": "fn|function",
    "hparams": "hparams|HParams",
    "variables": "variables|parameters",
    "hyperparameters": "hyperparameters|the optimizer 'adam' takes no 'nothing'",
}
# Values that mean something.
ACCEPTED = {
    "steps": [None], "validation_freq": [(1, 2), [1], VECTOR], "callbacks": [None, ()], "run_dir": [None],
    "controls": [None, {}], "class_weight": [None, {}],
}  # fmt: skip
