"""Values that the functions that train, measure and run a model must refuse."""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from bad_values._values import (
    BOOL,
    CHOICE,
    COUNT,
    FUNCTION,
    KEY,
    NOT_NUMBERS,
    NUMBER,
    PATH,
    SINGLE,
    VECTOR,
    WHOLE,
    X,
    Y,
    given,
    without,
)

import jaxcb as jc


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def weights(seed=0):
    return {"w": jnp.zeros((3, 1))}


def step(state):
    return state, {"loss": jnp.float32(1.0)}


DATA = {"loss_fn": loss_fn, "train_data": (X, Y), "optimizer": optax.sgd}
SHORT = {**DATA, "learning_rate": 0.1, "epochs": 1, "verbose": 0}
fit = given(jc.fit, model=weights(), **SHORT)
sweep = given(jc.sweep, model_fn=weights, over={"seed": [0, 1]}, **SHORT)
lr_find = given(jc.lr_find, model_fn=weights, rates=3, steps=1, **DATA)
largest = given(jc.search.largest_batch_size, model=weights(), **DATA | {"optimizer": optax.sgd(0.1)})


def run(**more):
    how = {"train_state": jc.TrainState.create(params=weights(), tx=optax.sgd(0.1)), "train_data": (X, Y), "epochs": 1}
    return jc.Loop(jc.Step(loss_fn), jc.EvalStep(loss_fn)).run(**(how | {"verbose": 0} | more))


MODEL = [None, 3, "abc", object(), len, {}, [], nn.Dense(1), nn.Dense, KEY, {"w": "a"}, {"w": np.arange(3)}]
MODEL_FN = [*without(MODEL, len), lambda: weights()]  # a function makes models
TRAIN_DATA = [None, 3, "abc", {}, [], (), KEY, object()]
CALLBACKS = [3, 0.5, "EarlyStopping", jc.EarlyStopping, [None], [3], len, {"a": 1}]
SEED = [-1, 1.5, math.nan, math.inf, True, SINGLE, None, 2**63, *NOT_NUMBERS]
MESH, SHARDING = [3, "data", [], VECTOR], [3, "zero", True]
COUNTS = ("epochs", "steps", "steps_per_epoch", "batch_size", "validation_freq", "validation_steps")
RUN = {
    **dict.fromkeys((*COUNTS, "validation_batch_size"), COUNT),
    "seed": SEED,
    "shuffle": BOOL,
    "resume": BOOL,
    "verbose": CHOICE,
    "run_dir": PATH,
    "metrics": [3, "norm", ["norm"], {"a": 3}, {3: jc.probes.grad_norm()}, {"": jc.probes.grad_norm()}],
    "execution": [3, "looped", {}, True, jc.Execution],
    "checkpointing": [3, "raise", {}, True, jc.Checkpointing],
    "train_data": TRAIN_DATA,
    "validation_data": [3, "abc", {}, [], (), KEY, object(), (X, Y[:3]), lambda: 0],
}
LOSS_FN = [3, "loss", None, lambda p: 0.0, lambda p, x, y: 0.0, lambda p, b, rng: 0.0, lambda p, b, training: 0]
CLASS_WEIGHT = [
    3, "balanced", [1.0], VECTOR, {"cat": 1.0}, {0: "a"}, {0: math.nan}, {0: -1}, {-1: 1.0}, {0.5: 1},
]  # fmt: skip
CONTROLS = [3, "abc", [1], {"a": math.nan}, {"a": math.inf}, {"a": VECTOR}, {"a": "b"}, {"a": KEY}, {3: 1.0}]
SAMPLE_WEIGHT = [3, "abc", np.ones(7), np.ones((8, 1)), np.full(8, math.nan), np.full(8, math.inf)]
OPTIMIZER = [3, "adam", 0.1, object()]
RATE = [-1, -0.1, math.nan, math.inf, True, None, *without(NOT_NUMBERS, len)]
TRAINABLE = [
    3, 0.5, {}, [], "", "nothing/**", VECTOR, KEY, object(), [3], {"a": "**"}, {1: "**"}, {0: []}, {0: 3},
    lambda path: True, lambda path, array: "yes", lambda path, array: False,
]  # fmt: skip
TRAINING = {
    "callbacks": CALLBACKS,
    "validation_split": [-0.5, 1.0, 2, math.nan, math.inf, *[x for x in NOT_NUMBERS if not isinstance(x, dict)]],
    "learning_rate": RATE,
    "class_weight": CLASS_WEIGHT,
    "sample_weight": SAMPLE_WEIGHT,
    "controls": CONTROLS,
    "optimizer": OPTIMIZER,
    "loss_fn": LOSS_FN,
    "trainable": TRAINABLE,
}
OVER = [
    None, 3, "abc", {}, [], [{}], VECTOR, KEY, len, [3], {3: [1]}, {"seed": 3}, {"seed": ["a"]}, {"seed": [-1]},
    {"learning_rte": [0.1]}, {"learning_rate": [-0.1]}, {"learning_rate": [math.nan]}, {"learning_rate": [KEY]},
    {"batch_size": [1, 2]}, {"callbacks.EarlyStopping.patience": [1]}, [{"seed": 0}, {"learning_rate": 0.1}],
]  # fmt: skip
EXECUTION = {
    "executor": CHOICE,
    "steps_per_execution": COUNT,
    "eval_every": COUNT,
    "overfit_batches": COUNT,
    "block": [*without(WHOLE, SINGLE), 33],
    "resident": without(BOOL, None),
    "drop_remainder": BOOL,
    "copy": BOOL,
    "debug": BOOL,
    "mesh": MESH,
    "sharding": SHARDING,
    "fast_dev_run": [-1, 1.5, math.nan, math.inf, *NOT_NUMBERS],
}
INPUT = [None, 3, "abc", {}, [], (), KEY, object(), len]
SCAN = {
    "callbacks": CALLBACKS,
    "step": [*without(FUNCTION, {}), lambda: 0, lambda s: s, lambda s: (s, 3), lambda s: (s, {"loss": "a"})],
    "state": ["abc", object(), len, {"w": "abc"}],
    "length": [*COUNT, None],
    "steps_per_epoch": COUNT,
}
FUNCTIONS = {
    "fit": (fit, {**RUN, **TRAINING, "model": MODEL}),
    "Loop": (
        given(jc.Loop, train_step=step),
        {"train_step": FUNCTION, "eval_step": without(FUNCTION, None), "callbacks": CALLBACKS},
    ),
    "Loop.run": (run, RUN | {"train_state": [None, 3, {}, weights()]}),
    "sweep": (
        sweep,
        {
            **RUN,
            **TRAINING,
            "model_fn": MODEL_FN,
            "over": OVER,
            "at_once": COUNT,
            "strategy": CHOICE,
            "repack": BOOL[:3],
        },
    ),
    "scan": (given(jc.scan, callbacks=(), step=step, state={"w": jnp.zeros(3)}, length=2), SCAN),
    "Execution": (jc.Execution, EXECUTION),
    "Checkpointing": (jc.Checkpointing, {"overwrite": BOOL, "on_error": CHOICE, "local_dir": PATH}),
    "evaluate": (
        given(jc.evaluate, model=weights(), loss_fn=loss_fn, data=(X, Y)),
        {
            "batch_size": COUNT,
            "seed": SEED,
            "loss_fn": LOSS_FN[:3],
            "model": MODEL,
            "data": INPUT,
            "sample_weight": SAMPLE_WEIGHT,
            "mesh": MESH,
            "sharding": SHARDING,
        },
    ),
    "predict": (
        given(jc.predict, model=weights(), x=X, fn=lambda p, x: x @ p["w"]),
        {
            "batch_size": COUNT,
            "model": MODEL,
            "x": INPUT,
            "fn": without(FUNCTION, None),
            "mesh": MESH,
            "sharding": SHARDING,
        },
    ),
    "lr_find": (
        lr_find,
        {
            **dict.fromkeys(("steps", "batch_size"), COUNT),
            "model_fn": MODEL_FN,
            "rates": [1, 2, *COUNT],
            "low": [0, -1, 20, *NUMBER],
            "high": [0, -1, 1e-9, *NUMBER],
            "seed": SEED,
            "strategy": CHOICE,
            "train_data": TRAIN_DATA,
            "optimizer": [*OPTIMIZER, None],
            "loss_fn": LOSS_FN,
        },
    ),
    "search.largest_batch_size": (
        largest,
        {
            "model": MODEL,
            "multiple_of": [9, *COUNT],
            "memory": COUNT,
            "resident": BOOL,
            "seed": SEED,
            "train_data": [*TRAIN_DATA, [X]],
            "optimizer": [*OPTIMIZER, None],
            "learning_rate": without(RATE, None),
            "callbacks": CALLBACKS,
            "loss_fn": LOSS_FN,
        },
    ),
    "Step": (given(jc.Step, loss_fn=loss_fn), {"loss_fn": FUNCTION, "class_weight": CLASS_WEIGHT}),
    "EvalStep": (given(jc.EvalStep, loss_fn=loss_fn), {"loss_fn": FUNCTION, "class_weight": CLASS_WEIGHT}),
    "TrainState.create": (
        given(jc.TrainState.create, params=weights()),
        {
            "tx": [3, "adam", optax.adam, KEY],
            "seed": [-1, 1.5, math.nan, "3", VECTOR, None, [1], object()],
            "controls": CONTROLS,
            "callbacks": [3, "abc", len, KEY],
            "trainable": TRAINABLE[:9],
        },
    ),
}
