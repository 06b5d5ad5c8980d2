"""Values that the arguments of callbacks must refuse: by name, and those of a few callbacks by callback and name."""

import inspect
import math

from bad_values._training import CALLBACKS as NO_CALLBACKS
from bad_values._training import RATE, SEED
from bad_values._values import (
    BOOL,
    CHOICE,
    FIELD,
    FUNCTION,
    KEY,
    NAME,
    NUMBER,
    NUMBER_FROM_0,
    PATH,
    VECTOR,
    WHOLE,
    without,
)

import jaxcb as jc
import jaxcb.callbacks

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
TEXT = ["", 3, 0.5, [], {}, VECTOR, KEY]
TEXTS = [3, 0.5, [], {}, KEY, VECTOR, [3], [""], ["nonsense"]]
HOOKS = ("epoch_begin", "epoch_end", "train_begin", "train_end", "train_batch_begin", "train_batch_end", "batch_begin")
FIELDS = {
    "patience": WHOLE, "cooldown": WHOLE, "start_from_epoch": WHOLE, "min_delta": NUMBER, "baseline": NUMBER,
    "stopping_threshold": NUMBER, "divergence_threshold": NUMBER, "initial_value_threshold": NUMBER,
    "factor": NUMBER, "min_lr": NUMBER_FROM_0, "decay": NUMBER, "mode": CHOICE, "threshold_mode": CHOICE,
    "patience_in": CHOICE, "restore_best_weights": BOOL, "check_finite": BOOL, "save_best_only": BOOL,
    "save_weights_only": BOOL, "save_at_end": BOOL, "async_": BOOL, "append": BOOL, "arrays": BOOL, "raise_error": BOOL,
    "report": BOOL, "per_layer": BOOL, "send_as_json": BOOL, "private": BOOL,
    "swap_on_epoch": BOOL, "write_graph": BOOL, "write_images": BOOL, "write_steps_per_second": BOOL,
    "every_n_epochs": FIELD, "max_to_keep": FIELD, "keep_best": FIELD, "every": FIELD, "save_freq": FIELD,
    "steps": without(FIELD, len), "least": FIELD, "first": FIELD, "window": FIELD, "snapshot_every": FIELD,
    "max_skips": FIELD, "depth": FIELD, "queue_size": FIELD, "start_step": WHOLE, "start_epoch": WHOLE,
    "until_epoch": WHOLE, "histogram_freq": WHOLE, "embeddings_freq": WHOLE, "min_epochs": WHOLE, "min_steps": WHOLE,
    "warmup": WHOLE, "every_minutes": NUMBER_FROM_0, "tokens_per_example": NUMBER_FROM_0,
    "peak_flops": [0, *NUMBER_FROM_0], "timeout": [0, *NUMBER_FROM_0], "fraction": [0, 1, 0.6, *NUMBER_FROM_0],
    "monitor": NAME, "filename": PATH, "filepath": PATH, "log_dir": PATH, "backup_dir": PATH, "name": TEXT,
    "separator": ["", ",,", 3, None, "\n", '"', "0", ".", "-", "e", KEY], "verbose": CHOICE, "by": CHOICE,
    "kind": CHOICE, "action": CHOICE, "where": [*TEXT, None], "repo_id": [*TEXT, "nonsense", "a/b/c"],
    "path_in_repo": without(TEXT, ""), "revision": TEXT, "endpoint": TEXT, "experiment": TEXT, "tracking_uri": TEXT,
    "run_name": TEXT, "project": TEXT, "root": [*TEXT, "nowhere", None], "path": without(TEXT, ""), "field": TEXT,
    "of": ["", 3, [], KEY, VECTOR], "numbers": TEXTS, "histograms": TEXTS, "seed": without(SEED, None),
    "schedule": FUNCTION, "fn": FUNCTION, "on_saved": without(FUNCTION, None),
    **{f"on_{hook}": without(FUNCTION, None) for hook in (*HOOKS, "batch_end", "test_begin", "test_end")},
    "tags": [3, "abc", [1], KEY], "headers": [3, "abc", [1], {3: "a"}, KEY],
    "factors": [3, "abc", [], [0], [-1], [math.nan], ["a"], KEY],
    "learning_rate": without(RATE, None),
    "update_freq": [0, -1, 1.5, "nonsense", math.nan, VECTOR, KEY, []],
    "profile_batch": ["nonsense", -1, 1.5, (3,), (3, 1), (1, 2, 3), KEY, math.nan],
    "embeddings_metadata": [3, ["a"], {"a": 3}, KEY],
    "hparams": [3, "abc", [1], KEY, None, (1, 2), {"a": math.nan}, {"a": VECTOR}],
    "duration": ["", "abc", -1, math.nan, math.inf, [1], KEY, None, VECTOR, "1:2"],
    "tracker": [None, 3, "abc", KEY, jc.writers.HTTPTracker],
    "callbacks": NO_CALLBACKS,
}  # fmt: skip
NOT_SETTLED_BY_THE_USER = {"Callback", "PopulationCallback", "StoppingCallback", "Chain"}  # bases, and what chain makes


def callbacks():
    """Name -> class of the callbacks."""
    found = {name: kind for name, kind in vars(jaxcb.callbacks).items() if inspect.isclass(kind)}
    return {n: kind for n, kind in found.items() if issubclass(kind, jc.Callback) and n not in NOT_SETTLED_BY_THE_USER}


def default_of(kind, argument):
    return inspect.signature(kind).parameters[argument].default


CASES = [
    (name, argument, value)
    for name, kind in sorted(callbacks().items())
    for argument in inspect.signature(kind).parameters
    for value in FIELDS.get(argument, ())
    if repr(value) != repr(default_of(kind, argument))
]
