"""Small cases written by hand."""

from against_keras._case import NAN, SCHEDULES, Case


def val_losses(*values):
    return tuple({"loss": 0.5} | ({} if v is None else {"val_loss": v}) for v in values)


def checkpoint(epochs, *, batches=(), names=("loss", "val_loss"), steps_per_execution=1, **given):
    arguments = {
        "filepath": "{epoch}.keras",
        "monitor": "val_loss",
        "save_best_only": False,
        "mode": "min",
        "save_freq": "epoch",
        "initial_value_threshold": None,
    } | given
    return Case("ModelCheckpoint", arguments, epochs, names, batches, steps_per_execution)


def stopping(*values, names=("loss", "val_loss"), **given):
    arguments = {"min_delta": 0.0, "patience": 1, "mode": "min", "baseline": None, "restore_best_weights": False}
    return Case("EarlyStopping", arguments | {"start_from_epoch": 0} | given, val_losses(*values), names)


PLATEAU = {"factor": 0.5, "patience": 1, "mode": "min", "min_delta": 0.0, "cooldown": 0, "min_lr": 0.0}

# The smallest case that each rule alone explains
SMALLEST = {
    "NaN first": stopping(NAN, 2.0, 1.0),
    "float32": stopping(0.100200005, 0.0002, min_delta=0.1),
    "missing monitor": stopping(None, names=("loss",)),
    "baseline": stopping(3.0, 2.0, 1.0, baseline=0.5),
    "cooldown": Case("ReduceLROnPlateau", PLATEAU | {"cooldown": 1}, val_losses(1.0, 1.0, 1.0)),
    "scheduler and plateau": Case(
        "LearningRateScheduler with ReduceLROnPlateau", PLATEAU | {"schedule": SCHEDULES[0]}, val_losses(1.0, 1.0, 0.5)
    ),
    "schedules of any number": Case("LearningRateScheduler", {"schedule": SCHEDULES[-1]}, val_losses(1.0)),
    "running mean": Case("TerminateOnNaN", {}, val_losses(0.0), ("loss",), ((3e38, 3e38),), running_mean=True),
    "best only, no report": checkpoint(val_losses(0.5, None), save_best_only=True),
    "names in paths": checkpoint(val_losses(0.5, None), filepath="{val_loss:.2f}.keras"),
    "best by step": checkpoint(
        val_losses(0.5), batches=((0.5, 0.25),), save_best_only=True, save_freq=1, filepath="{batch}.keras"
    ),
    "steps per execution": checkpoint(
        val_losses(0.5), batches=((0.5,) * 4,), save_freq=3, filepath="{batch}.keras", steps_per_execution=2
    ),
    "columns": Case("CSVLogger", {"separator": ","}, ({"loss": 0.5},), ("loss",)),
    "decimals": Case("CSVLogger", {"separator": ","}, val_losses(0.10000000149011612)),
}
