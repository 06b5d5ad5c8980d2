"""What Keras does: its own callback objects, driven by hand in the order of its `fit`."""

import csv
import functools
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from against_keras._case import Case

keras.config.disable_interactive_logging()  # its callbacks print what they do


class Optimizer:
    """What callbacks use of an optimizer: a rate that is float32."""

    def __init__(self, rate: float) -> None:
        self.learning_rate = rate

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, np.float32(value))


class Model:
    """What callbacks use of a model; its weights are the epoch that made them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.optimizer = Optimizer(case.learning_rate)
        self.stop_training = False
        self.metrics: list[Any] = []
        self.names = case.names  # for amendments: the metrics that the run has
        self.epoch, self.batch, self.weights = 0, 0, None
        self.saves: list[tuple[int, int | None, str]] = []

    def get_weights(self) -> int:
        return self.epoch

    def set_weights(self, weights: int) -> None:
        self.weights = weights

    def save(self, filepath: str, overwrite: bool = True) -> None:
        self.saves.append((self.epoch, self.batch, filepath))


@functools.cache
def amended(kind: str, amendments: tuple[type, ...]) -> type:
    """Keras's class, with some of its decisions replaced."""
    return type(kind, (*amendments, getattr(keras.callbacks, kind)), {})


def outcome(case: Case, amendments: tuple[type, ...] = ()) -> Any:
    """What Keras decides, amended or as it is."""
    with warnings.catch_warnings(action="ignore"):  # it warns of each missing metric
        try:
            return _OUTCOMES[case.kind](case, amendments)
        except (KeyError, LookupError):
            return "refused: a metric is missing"
        except (TypeError, ValueError) as error:
            return f"fails: {type(error).__name__}"


def run(case: Case, *callbacks: Any) -> Model:
    """Calls the hooks of a run."""
    model = Model(case)
    for callback in callbacks:
        callback.set_model(model)
        callback.on_train_begin()
    for epoch, logs in enumerate(case.epochs):
        model.epoch, model.batch = epoch, None  # pyright: ignore[reportAttributeAccessIssue]
        for callback in callbacks:
            callback.on_epoch_begin(epoch)
        _batches(case, model, epoch, callbacks)
        for callback in callbacks:
            callback.on_epoch_end(epoch, dict(logs))
        if model.stop_training:
            break
    for callback in callbacks:
        callback.on_train_end()
    return model


def _batches(case: Case, model: Model, epoch: int, callbacks: tuple[Any, ...]) -> None:
    """Calls the hooks of an epoch's batches."""
    seen = np.float32(0.0)
    for batch, loss in enumerate(case.batches[epoch] if case.batches else ()):
        model.batch = batch
        with np.errstate(over="ignore", invalid="ignore"):
            seen = np.add(seen, np.float32(loss), dtype=np.float32)
        if (batch + 1) % case.steps_per_execution:
            continue
        value = float(seen / np.float32(batch + 1)) if case.running_mean else loss
        for callback in callbacks:
            callback.on_train_batch_end(batch, {"loss": value})
        if model.stop_training:
            break


def _early_stopping(case: Case, amendments: tuple[type, ...]) -> Any:
    callback = amended("EarlyStopping", amendments)(**case.arguments)
    model = run(case, callback)
    last = model.epoch if model.weights is None else model.weights
    return {"stopped in epoch": model.epoch if model.stop_training else None, "ends with the weights of epoch": last}


class _Rates(keras.callbacks.Callback):
    """Notes the rate that each epoch trains with, or ends with."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at, self.rates = at, []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.at == "begin":
            self.rates.append(self.model.optimizer.learning_rate)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.at == "end":
            self.rates.append(self.model.optimizer.learning_rate)


def _rates(case: Case, at: str, *callbacks: Any) -> np.ndarray:
    noted = _Rates(at)
    run(case, *callbacks, noted)
    return np.asarray(noted.rates, np.float32)


def _plateau(case: Case, amendments: tuple[type, ...]) -> Any:
    return {"rates": _rates(case, "end", amended("ReduceLROnPlateau", amendments)(**case.arguments))}


def _scheduler(case: Case, amendments: tuple[type, ...]) -> Any:
    schedule = case.arguments["schedule"].fn
    return {"rates": _rates(case, "begin", amended("LearningRateScheduler", amendments)(schedule))}


def _both(case: Case, amendments: tuple[type, ...]) -> Any:
    arguments = dict(case.arguments)
    scheduler = keras.callbacks.LearningRateScheduler(arguments.pop("schedule").fn)
    plateau = amended("ReduceLROnPlateau", amendments)(**arguments)
    if not case.multiply:
        return {"rates": _rates(case, "end", scheduler, plateau)}
    factors = _rates(case, "end", plateau) / np.float32(case.learning_rate)
    return {"rates": _rates(case, "begin", scheduler) * factors}


def _checkpoint(case: Case, amendments: tuple[type, ...]) -> Any:
    callback = amended("ModelCheckpoint", amendments)(**case.arguments)
    return {"saves": run(case, callback).saves}


def _terminate(case: Case, amendments: tuple[type, ...]) -> Any:
    model = run(case, amended("TerminateOnNaN", amendments)())
    return {"stopped at": (model.epoch, model.batch) if model.stop_training else None}


def _csv(case: Case, amendments: tuple[type, ...]) -> Any:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "log.csv"
        run(case, amended("CSVLogger", amendments)(str(path), **case.arguments))
        return {"rows": rows(path, case)}


def rows(path: Path, case: Case) -> list[list[str]]:
    """The cells of a CSV file."""
    with path.open(newline="") as lines:
        return list(csv.reader(lines, delimiter=case.arguments["separator"]))


_OUTCOMES = {
    "EarlyStopping": _early_stopping,
    "ReduceLROnPlateau": _plateau,
    "ModelCheckpoint": _checkpoint,
    "TerminateOnNaN": _terminate,
    "LearningRateScheduler": _scheduler,
    "LearningRateScheduler with ReduceLROnPlateau": _both,
    "CSVLogger": _csv,
}
