"""A case: arguments of a callback and what a run reports, drawn by Hypothesis."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

EPOCHS = 10  # at most
NAN, INF = math.nan, math.inf


@dataclasses.dataclass(frozen=True)
class Case:
    """What one comparison is about.

    Attributes:
        kind: the name of what is compared.
        arguments: of the callback, the same for both.
        epochs: what each epoch reports at its end: a metric that is not measured then is absent.
        names: of the metrics that the run has at all.
        batches: the loss of each step, by epoch.
        steps_per_execution: after how many steps Keras's batch hooks are called.
        running_mean: whether batch hooks see the mean since the epoch began, as in Keras.
        learning_rate: before the first epoch.
        multiply: whether two callbacks' rates multiply; the last one that sets the rate wins where they do not.
    """

    kind: str
    arguments: Mapping[str, Any]
    epochs: tuple[Mapping[str, float], ...]
    names: tuple[str, ...] = ("loss", "val_loss")
    batches: tuple[tuple[float, ...], ...] = ()
    steps_per_execution: int = 1
    running_mean: bool = False
    learning_rate: float = 1.0
    multiply: bool = False

    def reports(self) -> list[float | None]:
        """What the monitor reports at each epoch's end, None for nothing."""
        return [logs.get(self.arguments.get("monitor", "val_loss")) for logs in self.epochs]

    def replace(self, **changes: Any) -> "Case":
        return dataclasses.replace(self, **changes)


# Metrics are float32. Multiples of 2**-10 have exact sums in it; the few others look for rounding.
DYADIC = st.integers(-8, 8).map(lambda n: n / 4) | st.integers(-2048, 2048).map(lambda n: n / 1024)
ODD = st.sampled_from([NAN, INF, -INF, 0.0, -0.0])
ROUNDED = st.sampled_from(
    [0.1, 0.0002, 0.1002, 0.100200005, 0.1 + 0.2, 1.0000001, 16777216.0, 16777218.0, 1e-4, 1e30]
).map(lambda value: float(np.float32(value)))
VALUES = st.one_of(DYADIC, DYADIC, DYADIC, ODD, ROUNDED)
DELTAS = st.sampled_from([0.0, 0.0, 2**-10, 0.25, -0.25, 1.0, 1e-4, 0.1])
MODES = st.sampled_from(["min", "max"])


@st.composite
def epoch_logs(draw: Any, values: Any = VALUES) -> tuple[tuple[dict[str, float], ...], tuple[str, ...]]:
    """What epochs report, validation every n epochs or not at all; and the names."""
    count, every = draw(st.integers(1, EPOCHS)), draw(st.sampled_from([1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 0]))
    logs = []
    for epoch in range(count):
        logs.append({"loss": draw(values)})
        if every and (epoch + 1) % every == 0:
            logs[-1]["val_loss"] = draw(values)
    return tuple(logs), (("loss", "val_loss") if every else ("loss",))


@st.composite
def early_stopping(draw: Any) -> Case:
    arguments = {
        "min_delta": draw(DELTAS),
        "patience": draw(st.integers(0, 4)),
        "mode": draw(MODES),
        "baseline": draw(st.none() | DYADIC | st.just(0.1)),
        "restore_best_weights": draw(st.booleans()),
        "start_from_epoch": draw(st.sampled_from([0, 0, 1, 3])),
    }
    return Case("EarlyStopping", arguments, *draw(epoch_logs()))


@st.composite
def reduce_lr_on_plateau(draw: Any) -> Case:
    min_lr = draw(st.sampled_from([0.0, 2**-6, 0.25]))
    # where there is a floor, rates are powers of two: both then reach it at the same cut
    factors, rates = ([0.5, 0.25], [1.0, 0.5, 0.25]) if min_lr else ([0.5, 0.1, 0.3, 0.9], [1.0, 0.1, 0.003])
    arguments = {
        "factor": draw(st.sampled_from(factors)),
        "patience": draw(st.integers(0, 3)),
        "mode": draw(MODES),
        "min_delta": draw(DELTAS),
        "cooldown": draw(st.integers(0, 3)),
        "min_lr": min_lr,
    }
    return Case("ReduceLROnPlateau", arguments, *draw(epoch_logs()), learning_rate=draw(st.sampled_from(rates)))


TEMPLATES = ("{epoch:02d}.keras", "{epoch}-{val_loss:.2f}.keras", "{loss:.3f}-{epoch:03d}.keras")
BATCH_TEMPLATES = ("{epoch:02d}-{batch:02d}.keras", "{epoch}-{batch}-{loss:.2f}.keras")


@st.composite
def model_checkpoint(draw: Any) -> Case:
    by_epoch = draw(st.booleans())
    steps = draw(st.integers(1, 3)) * (per := draw(st.sampled_from([1, 1, 2, 3])))
    epochs, names = draw(epoch_logs())
    epochs = epochs if by_epoch else epochs[:4]
    arguments = {
        "filepath": draw(st.sampled_from(TEMPLATES if by_epoch else BATCH_TEMPLATES)),
        "monitor": draw(st.sampled_from(["val_loss", "val_loss", "loss"])),
        "save_best_only": draw(st.booleans()),
        "mode": draw(MODES),
        "save_freq": "epoch" if by_epoch else draw(st.integers(1, 5)),
        "initial_value_threshold": draw(st.none() | st.sampled_from([0.25, -1.0])),
    }
    if "val_loss" not in names and "{val_loss" in arguments["filepath"]:
        arguments["filepath"] = TEMPLATES[0]
    batches = tuple(tuple(draw(VALUES) for _ in range(steps)) for _ in epochs) if not by_epoch else ()
    return Case("ModelCheckpoint", arguments, epochs, names, batches, steps_per_execution=1 if by_epoch else per)


@st.composite
def terminate_on_nan(draw: Any) -> Case:
    large = st.sampled_from([3e38, -3e38, 1e38]).map(np.float32).map(float)
    value = st.one_of(DYADIC, DYADIC, DYADIC, DYADIC, DYADIC, large, ODD)
    steps, epochs = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    batches = tuple(tuple(draw(value) for _ in range(steps)) for _ in range(epochs))
    logs = tuple({"loss": 0.0} for _ in range(epochs))
    return Case("TerminateOnNaN", {}, logs, ("loss",), batches, running_mean=True)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A user's schedule that has a name, so that a failing case can be read."""

    text: str
    fn: Callable[..., Any] = dataclasses.field(compare=False, repr=False)


def _schedules() -> tuple[Schedule, ...]:
    import jax.numpy as jnp

    written: dict[str, Callable[..., Any]] = {
        "steps": lambda epoch: 0.5 if epoch < 3 else 0.125,
        "exp": lambda epoch: 0.5 * math.exp(-0.1 * epoch),
        "power": lambda epoch: 1.0 / 2**epoch,
        "decay of the rate": lambda epoch, lr: lr if epoch < 2 else lr * 0.5,
        "rate alone": lambda epoch, lr: lr * 0.9,
        "whole number": lambda epoch: 1,
        "JAX array": lambda epoch: jnp.where(epoch < 2, 0.5, 0.25),
    }
    return tuple(Schedule(text, fn) for text, fn in written.items())


SCHEDULES = _schedules()


@st.composite
def learning_rate_scheduler(draw: Any) -> Case:
    arguments = {"schedule": draw(st.sampled_from(SCHEDULES))}
    epochs = tuple({"loss": 0.5} for _ in range(draw(st.integers(1, EPOCHS))))
    rate = draw(st.integers(1, 1024)) / 1024
    return Case("LearningRateScheduler", arguments, epochs, ("loss",), learning_rate=rate)


@st.composite
def scheduler_and_plateau(draw: Any) -> Case:
    plateau = draw(reduce_lr_on_plateau())
    arguments = {**plateau.arguments, "min_lr": 0.0, "schedule": draw(st.sampled_from(SCHEDULES[:4]))}
    return plateau.replace(kind="LearningRateScheduler with ReduceLROnPlateau", arguments=arguments)


@st.composite
def csv_logger(draw: Any) -> Case:
    epochs, names = draw(epoch_logs())
    arguments = {"separator": draw(st.sampled_from([",", ";", "\t"]))}
    return Case("CSVLogger", arguments, epochs, names)


KINDS: dict[str, Any] = {
    "EarlyStopping": early_stopping(),
    "ReduceLROnPlateau": reduce_lr_on_plateau(),
    "ModelCheckpoint": model_checkpoint(),
    "TerminateOnNaN": terminate_on_nan(),
    "LearningRateScheduler": learning_rate_scheduler(),
    "LearningRateScheduler with ReduceLROnPlateau": scheduler_and_plateau(),
    "CSVLogger": csv_logger(),
}
