"""Values that no argument takes, for the arguments of the public functions and of every callback.

Each is refused before the first step, by an error that names the argument, or is listed here as accepted.
"""

import inspect
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc
import jaxcb.callbacks
from jaxcb._src.history.history import RunHistory

X = np.zeros((8, 3), np.float32)
Y = np.zeros((8, 1), np.float32)
KEY = jax.random.key(0)
VECTOR = np.array([1, 2])
SINGLE = jnp.array(3)

TEXTS = ["", "3", "yes"]
NOT_NUMBERS = ["", "3", b"3", [1], (1, 2), {}, {"a": 1}, VECTOR, KEY, object(), len, 1j]
COUNT = [0, -1, 1.5, math.nan, math.inf, -math.inf, True, SINGLE, np.array(3), *NOT_NUMBERS]  # from 1 on
NUMBER = [math.nan, math.inf, -math.inf, *NOT_NUMBERS]
NUMBER_FROM_0 = [-1, -0.5, *NUMBER]
WHOLE = [-1, 1.5, *NUMBER]  # from 0 on; a field of a callback may be an array of one number
BOOL = [2, -1, 0.5, None, *NOT_NUMBERS]
CHOICE = ["", "nonsense", 3, -1, 0.5, [], {}, VECTOR, KEY, object()]
NAME = ["", 3, 0.5, [], {}, VECTOR, KEY, None]
PATH = ["", 3, 0.5, [], {}, VECTOR, KEY]
MAPPING = [3, "abc", [1], VECTOR, KEY, len]


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def weights(seed=0):
    return {"w": jnp.zeros((3, 1))}


def fit(**given):
    how = {"model": weights(), "loss_fn": loss_fn, "train_data": (X, Y), "optimizer": optax.sgd, "learning_rate": 0.1}
    return jc.fit(**(how | {"epochs": 1, "verbose": 0} | given))


def run(**given):
    state = jc.TrainState.create(params=weights(), tx=optax.sgd(0.1))
    return jc.Loop(jc.Step(loss_fn), jc.EvalStep(loss_fn)).run(
        **({"train_state": state, "train_data": (X, Y), "epochs": 1, "verbose": 0} | given)
    )


def sweep(**given):
    how = {"model_fn": weights, "loss_fn": loss_fn, "train_data": (X, Y), "optimizer": optax.sgd, "learning_rate": 0.1}
    return jc.sweep(**(how | {"epochs": 1, "verbose": 0, "over": {"seed": [0, 1]}} | given))


def evaluate(**given):
    return jc.evaluate(**({"model": weights(), "loss_fn": loss_fn, "data": (X, Y)} | given))


def predict(**given):
    return jc.predict(**({"model": weights(), "x": X, "fn": lambda p, x: x @ p["w"]} | given))


def lr_find(**given):
    how = {"model_fn": weights, "loss_fn": loss_fn, "train_data": (X, Y), "optimizer": optax.sgd, "rates": 3}
    return jc.lr_find(**(how | {"steps": 1} | given))


NET, STOP = nn.Dense(1), jc.EarlyStopping("loss")
HISTORY = RunHistory()
HISTORY.add(1, 0, {"loss": 0.5}, {"loss": True})
RESULT = jc.Result(jc.TrainState.create(params={}), None, HISTORY, None, None, {}, "looped", None, ())
COUNTS = ("epochs", "steps", "steps_per_epoch", "batch_size", "validation_freq", "validation_steps")
RUN = {
    **dict.fromkeys((*COUNTS, "validation_batch_size"), COUNT),
    "seed": [-1, 1.5, math.nan, math.inf, True, SINGLE, None, 2**63, *NOT_NUMBERS],
    "shuffle": BOOL,
    "resume": BOOL,
    "verbose": CHOICE,
    "run_dir": PATH,
    "callbacks": [3, 0.5, "EarlyStopping", jc.EarlyStopping, [None], [3], len, {"a": 1}],
    "metrics": [3, "norm", ["norm"], {"a": 3}, {3: jc.probes.grad_norm()}, {"": jc.probes.grad_norm()}],
    "execution": [3, "looped", {}, True, jc.Execution],
    "checkpointing": [3, "raise", {}, True, jc.Checkpointing],
    "train_data": [None, 3, "abc", {}, [], (), KEY, object()],
}
TRAINING = {
    "validation_split": [-0.5, 1.0, 2, math.nan, math.inf, *[x for x in NOT_NUMBERS if not isinstance(x, dict)]],
    "learning_rate": [-1, -0.1, math.nan, math.inf, True, None, *[x for x in NOT_NUMBERS if x is not len]],
    "class_weight": [3, "balanced", [1.0], VECTOR, {"cat": 1.0}, {0: "a"}, {0: math.nan}, {0: -1}, {-1: 1.0}, {0.5: 1}],
    "sample_weight": [3, "abc", np.ones(7), np.ones((8, 1))],
    "controls": [3, "abc", [1], {"a": math.nan}, {"a": math.inf}, {"a": VECTOR}, {"a": "b"}, {"a": KEY}, {3: 1.0}],
    "optimizer": [3, "adam", 0.1, object()],
    "loss_fn": [3, "loss", None, lambda p: 0.0, lambda p, x, y: 0.0, lambda p, b, rng: 0.0, lambda p, b, training: 0],
}
OVER = [
    None, 3, "abc", {}, [], [{}], VECTOR, KEY, len, [3], {3: [1]}, {"seed": 3}, {"seed": ["a"]}, {"seed": [-1]},
    {"learning_rte": [0.1]}, {"learning_rate": [-0.1]}, {"learning_rate": [math.nan]}, {"learning_rate": [KEY]},
    {"batch_size": [1, 2]}, [{"seed": 0}, {"learning_rate": 0.1}],
]  # fmt: skip
NO_CHOICES = [None, 3, "abc", [1], VECTOR, KEY, len, {3: [1]}, {"seed": 3}, {"seed": "abc"}, {"seed": KEY}]
EXECUTION = {
    "executor": CHOICE,
    "steps_per_execution": COUNT,
    "eval_every": COUNT,
    "overfit_batches": COUNT,
    "block": [x for x in WHOLE if x is not SINGLE] + [33],
    "resident": [x for x in BOOL if x is not None],
    "drop_remainder": BOOL,
    "copy": BOOL,
    "debug": BOOL,
    "mesh": [3, "data", [], VECTOR],
    "sharding": [3, "zero", True],
    "fast_dev_run": [-1, 1.5, math.nan, math.inf, *NOT_NUMBERS],
}
FUNCTIONS = {
    "fit": (fit, RUN | TRAINING),
    "Loop.run": (run, RUN | {"train_state": [None, 3, {}, weights()]}),
    "sweep": (sweep, {**RUN, **TRAINING, "over": OVER, "at_once": COUNT, "strategy": CHOICE, "repack": BOOL[:3]}),
    "Execution": (jc.Execution, EXECUTION),
    "Checkpointing": (jc.Checkpointing, {"overwrite": BOOL, "on_error": CHOICE}),
    "evaluate": (evaluate, {"batch_size": COUNT, "seed": RUN["seed"], "loss_fn": TRAINING["loss_fn"][:3]}),
    "predict": (predict, {"batch_size": COUNT}),
    "adjustable_lr": (
        lambda **given: jc.adjustable_lr(**({"factory": optax.sgd, "learning_rate": 0.1} | given)),
        {
            "learning_rate": [
                -1,
                math.nan,
                math.inf,
                "0.1",
                None,
                VECTOR,
                KEY,
                [0.1],
                lambda count: None,
                lambda count: X,
            ]
        },
    ),
    "probe": (lambda **given: jc.probe(**({"fn": len} | given)), {"every": COUNT[:7], "fn": [3, "norm", None]}),
    "lr_find": (
        lr_find,
        {
            **dict.fromkeys(("steps", "batch_size"), COUNT),
            "rates": [1, 2, *COUNT],
            "low": [0, -1, 20, *NUMBER],
            "high": [0, -1, 1e-9, *NUMBER],
            "seed": RUN["seed"],
            "strategy": CHOICE,
            "train_data": [None, 3, "abc", {}, [], (), KEY, object()],
            "optimizer": [3, "adam", 0.1, object(), None],
            "loss_fn": TRAINING["loss_fn"],
        },
    ),
    "search.largest_batch_size": (
        lambda **given: jc.search.largest_batch_size(
            **({"model": weights(), "loss_fn": loss_fn, "train_data": (X, Y), "optimizer": optax.sgd(0.1)} | given)
        ),
        {
            "multiple_of": [9, *COUNT],
            "memory": COUNT,
            "resident": BOOL,
            "seed": RUN["seed"],
            "train_data": [None, 3, "abc", {}, [], (), [X], KEY, object()],
            "optimizer": [3, "adam", 0.1, object(), None],
            "callbacks": RUN["callbacks"],
            "loss_fn": TRAINING["loss_fn"],
        },
    ),
    "replay": (
        lambda **given: jc.replay(**({"callbacks": [STOP], "source": {"loss": [1.0, 2.0]}} | given)),
        {
            "callbacks": [None, 3, 0.5, "EarlyStopping", jc.EarlyStopping, [None], [3], len, {"a": 1}, KEY, VECTOR],
            "source": [
                None,
                3,
                0.5,
                KEY,
                VECTOR,
                object(),
                len,
                {},
                [],
                {"loss": []},
                {"loss": 1.0},
                {"loss": ["a"]},
                [3],
                [{"loss": "a"}],
                {"loss": [1.0], "acc": [1.0, 2.0]},
                {"loss": [[1.0]]},
                {"loss": [KEY]},
            ],
            "learning_rate": [-1, math.nan, math.inf, "0.1", VECTOR, KEY, [0.1], lambda count: None],
            "over": [3, "abc", {"loss": [1]}, {"callbacks.EarlyStopping.patience": []}, [], {}, KEY, VECTOR, len],
        },
    ),
    "load": (
        lambda **given: jc.load(**({"path": "nowhere"} | given)),
        {"path": [*PATH, None], "what": CHOICE},
    ),
    "search.grid": (
        lambda **given: jc.search.grid(**({"over": {"seed": [0]}} | given)),
        {
            "over": [*NO_CHOICES, {"": [1]}, {"seed": {"a": 1}}, {"seed": {1}}, {"seed": None}],
        },
    ),
    "search.draws": (
        lambda **given: jc.search.draws(**({"n": 2, "over": {"seed": jc.search.integers(0, 9)}} | given)),
        {
            "n": COUNT,
            "seed": RUN["seed"],
            "over": [*NO_CHOICES, {"seed": []}, {"seed": {}}],
        },
    ),
    **{
        f"search.{draw.__name__}": (
            lambda draw=draw, **given: draw(**({"low": 1, "high": 3} | given)),
            {"low": [*NUMBER, 3, 4, *wrong], "high": [*NUMBER, 1, 0, *wrong]},
        )
        for draw, wrong in (
            (jc.search.uniform, []),
            (jc.search.log_uniform, [0, -1]),
            (jc.search.integers, [0.5, 2.5, 1e30]),
        )
    },
    "make_callback": (
        lambda **given: jc.make_callback(**({"on_epoch_end": lambda s, m: (s, None)} | given)),
        {"init": [3, "abc", [1], KEY], "name": ["", 3, [], KEY], "on_epoch_end": [3, "abc", None, KEY, VECTOR]},
    ),
    "TrainState.create": (
        lambda **given: jc.TrainState.create(**({"params": weights()} | given)),
        {
            "tx": [3, "adam", optax.adam, KEY],
            "seed": [-1, 1.5, math.nan, "3", VECTOR, None, [1], object()],
            "controls": TRAINING["controls"],
            "callbacks": [3, "abc", len, KEY],
        },
    ),
    "model_summary": (
        lambda **given: jc.model_summary(**({"model": weights()} | given)),
        {"model": [None, 3, "abc", object(), len, {}], "depth": [x for x in COUNT if x is not SINGLE]},
    ),
    "Recorder": (jc.Recorder, {"run_dir": PATH, "verbose": CHOICE, "callbacks": [3, "abc", KEY]}),
    "Result.plot": (
        lambda **given: RESULT.plot(**given),
        {"path": PATH, "names": [3, 0.5, [], "los", ["los"], [3], KEY, VECTOR, len]},
    ),
    "linen": (
        lambda **given: jc.linen(given.pop("module", NET), X, **given),
        {
            "seed": [-1, 1.5, "3", VECTOR, None, [1], object()],
            "rngs": ["dropout", 3, [3], None],
            "eval_module": [3, "abc", object()],
            "module": [None, 3, "abc", object(), KEY],
        },
    ),
}
# of the errors that say it in other words
SAID = {"train_data": "data", "source": "replay takes|column|record|source"}
# Accepted: an argument -> values that mean something.
ACCEPTED = {
    "steps": [None], "epochs": [], "validation_freq": [(1, 2), [1], VECTOR], "verbose": [],
    "callbacks": [None, ()], "run_dir": [None], "controls": [None, {}], "class_weight": [None, {}],
}  # fmt: skip


def is_accepted(argument, value):
    return any(value is known or repr(value) == repr(known) for known in ACCEPTED.get(argument, ()))


CASES = [
    (function, argument, value)
    for function, (_, arguments) in FUNCTIONS.items()
    for argument, values in arguments.items()
    for value in values
    if not is_accepted(argument, value)
]


# Callbacks: what a field takes is told by its annotation

REQUIRED = {
    "CSVLogger": {"filename": "a.csv"},
    "JSONLogger": {"filename": "a.jsonl"},
    "ModelCheckpoint": {"filepath": "a"},
    "BackupAndRestore": {"backup_dir": "a"},
    "Freeze": {"where": "**"},
    "GradientAccumulation": {"steps": 2},
    "LearningRateScheduler": {"schedule": lambda epoch: 0.1},
    "LogTo": {"fn": len},
    "StochasticWeightAveraging": {"start_epoch": 1},
    "WandbLogger": {"project": "a"},
    "HubUpload": {"repo_id": "a/b"},
    "MLflowLogger": {"experiment": "a"},
    "Timer": {"duration": 1.0},
    "TrackioLogger": {"project": "a"},
    "TrackerLogger": {"tracker": jc.writers.HTTPTracker("http://localhost:9000")},
}
FIELD = [x for x in COUNT if x is not SINGLE and not (isinstance(x, np.ndarray) and x.ndim == 0)]
FIELDS = {
    "patience": WHOLE, "cooldown": WHOLE, "start_from_epoch": WHOLE, "min_delta": NUMBER, "baseline": NUMBER,
    "stopping_threshold": NUMBER, "divergence_threshold": NUMBER, "initial_value_threshold": NUMBER,
    "factor": NUMBER, "min_lr": NUMBER_FROM_0, "decay": NUMBER, "mode": CHOICE, "threshold_mode": CHOICE,
    "patience_in": CHOICE, "restore_best_weights": BOOL, "check_finite": BOOL, "save_best_only": BOOL,
    "save_weights_only": BOOL, "save_at_end": BOOL, "async_": BOOL, "append": BOOL, "arrays": BOOL, "raise_error": BOOL,
    "report": BOOL,
    "swap_on_epoch": BOOL, "write_graph": BOOL, "write_images": BOOL, "write_steps_per_second": BOOL,
    "every_n_epochs": FIELD, "max_to_keep": FIELD, "keep_best": FIELD, "start_step": WHOLE, "start_epoch": WHOLE,
    "min_epochs": WHOLE, "min_steps": WHOLE,
    "warmup": WHOLE, "monitor": NAME, "filename": PATH, "filepath": PATH, "log_dir": PATH, "backup_dir": PATH,
    "separator": ["", ",,", 3, None, "\n", '"', "0", ".", "-", "e", KEY],
}  # fmt: skip


def fields_of_callbacks():
    for name in sorted(vars(jaxcb.callbacks)):
        kind = vars(jaxcb.callbacks)[name]
        if not (inspect.isclass(kind) and issubclass(kind, jc.Callback)) or name in ("Callback", "PopulationCallback"):
            continue
        for argument in inspect.signature(kind).parameters:
            if argument == "warmup" and name != "SwapEMAWeights":
                continue
            for value in FIELDS.get(argument, ()):
                yield name, argument, value


OF_CALLBACKS = list(fields_of_callbacks())


def refused(call, argument, value):
    """The call raises an error of ours that names the argument."""
    words = SAID.get(argument, argument).split("|")
    try:
        call(**{argument: value})
    except (TypeError, ValueError, LookupError) as error:
        text = " ".join(str(error).split())
        if not any(word in text for word in words):
            return f"{type(error).__name__} without {words}: {text[:160]}"
        if len(text) < 20:
            return f"a message of {len(text)} letters"
        return None
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:160]}"
    return "taken"


@pytest.fixture
def never_runs(monkeypatch):
    def train(self):
        raise RuntimeError("the run began")

    monkeypatch.setattr("jaxcb._src.loop.host.driver.Driver.train", train)


def test_there_are_many():
    assert len(CASES) + len(OF_CALLBACKS) >= 400


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arguments_of_functions(never_runs, function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, wrong = FUNCTIONS[function][0], []
    for name, argument, value in CASES:
        if name == function:
            found = refused(call, argument, value)
            wrong += [f"{argument}={value!r}: {found}"] if found else []
    assert not wrong, "\n".join(wrong)
    assert not list(tmp_path.iterdir()), "a refused call leaves no file"


@pytest.mark.parametrize("name", sorted({name for name, _, _ in OF_CALLBACKS}))
def test_arguments_of_callbacks(name):
    kind, wrong = getattr(jaxcb.callbacks, name), []
    for of, argument, value in OF_CALLBACKS:
        if of == name:
            given = {k: v for k, v in REQUIRED.get(name, {}).items() if k != argument}
            found = refused(lambda given=given, **more: kind(**given, **more), argument, value)
            wrong += [f"{argument}={value!r}: {found}"] if found else []
    assert not wrong, "\n".join(wrong)
