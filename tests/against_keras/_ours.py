"""What jaxcb does: the compiled transitions, one program for each form of a callback."""

import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from against_keras._case import EPOCHS, Case
from against_keras._theirs import rows

import jaxcb as jc
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.history.reader import Records
from jaxcb._src.replay.program import ReplaySpec, run, to_rows
from jaxcb._src.utils.pytree import to_strong_types


def outcome(case: Case) -> Any:
    """What jaxcb decides."""
    try:
        return _OUTCOMES[case.kind](case)
    except jc.errors.MissingMetricError:
        return "refused: a metric is missing"


# By the epoch: the program of `jaxcb._src.replay.replay.replay`, over epochs of which the last ones report nothing

_program = jax.jit(run, static_argnums=2)


def _replayed(case: Case, *callbacks: jc.Callback) -> Any:
    names = case.names
    values, reported = np.full((EPOCHS, len(names)), np.nan, np.float32), np.full((EPOCHS, len(names)), -1, np.int32)
    for epoch in range(EPOCHS):
        logs = case.epochs[epoch] if epoch < len(case.epochs) else {}
        for i, name in enumerate(names):
            if name in logs:
                values[epoch, i], reported[epoch, i] = logs[name], epoch + 1
            elif epoch:
                values[epoch, i], reported[epoch, i] = values[epoch - 1, i], reported[epoch - 1, i]
    step = np.arange(1, EPOCHS + 1, dtype=np.int32)
    records = Records(names, values, reported, step, step - 1, {})
    chain = jax.device_get(to_strong_types(jc.chain(*callbacks)))
    return jax.device_get(
        _program(chain, to_rows(records, case.learning_rate), ReplaySpec.of(records, case.learning_rate))
    )


def _early_stopping(case: Case) -> Any:
    played, count = _replayed(case, jc.EarlyStopping(**case.arguments)), len(case.epochs)
    stopped = int(np.argmax(played.stopped)) if played.stopped[:count].any() else None
    last = count - 1 if stopped is None else stopped
    copies = [a.when[: last + 1] for a in played.actions if isinstance(a, jc.actions.Snapshot)]
    best = np.flatnonzero(np.logical_or.reduce(copies)) if copies else []
    ends = (
        int(best[-1]) if len(best) and any(isinstance(a, jc.actions.Restore) and a.when for a in played.end) else last
    )
    return {"stopped in epoch": stopped, "ends with the weights of epoch": ends}


def _rates(case: Case, played: Any) -> np.ndarray:
    return (np.float32(case.learning_rate) * played.scale[:, 0])[: len(case.epochs)]


def _plateau(case: Case) -> Any:
    return {"rates": _rates(case, _replayed(case, jc.ReduceLROnPlateau(**case.arguments)))}


@functools.cache
def _scheduling(schedule: Any) -> jc.LearningRateScheduler:
    return jc.LearningRateScheduler(schedule.fn)


def _scheduled(played: Any, count: int) -> np.ndarray:
    (action,) = (a for a in played.actions if isinstance(a, jc.actions.SetLearningRate))
    return action.value[:count]


def _scheduler(case: Case) -> Any:
    played = _replayed(case, _scheduling(case.arguments["schedule"]))
    return {"rates": _scheduled(played, len(case.epochs))}


def _both(case: Case) -> Any:
    arguments = dict(case.arguments)
    scheduler = _scheduling(arguments.pop("schedule"))
    played = _replayed(case, scheduler, jc.ReduceLROnPlateau(**arguments))
    count = len(case.epochs)
    return {"rates": _scheduled(played, count) * played.scale[:count, 0]}


# By the batch: hook by hook


@functools.partial(jax.jit, static_argnums=0)
def _call(hook: str, chain: Any, state: Any, metrics: Metrics) -> Any:
    return getattr(chain, hook)(state, metrics)


class _Walk:
    """A run of one callback: its hooks in the order of moments."""

    def __init__(self, case: Case, callback: jc.Callback) -> None:
        self.chain = jax.device_get(to_strong_types(jc.chain(callback)))
        self.hooks, self.state = self.chain.hooks(), self.chain.init()
        self.values = dict.fromkeys(case.names, math.nan)
        self.reported = dict.fromkeys(case.names, -1)
        self.epoch = self.step = 0

    def call(self, hook: str, values: dict[str, float], reported: dict[str, int], closes: bool) -> tuple[Any, ...]:
        if hook not in self.hooks:
            return ()
        metrics = Metrics._make(
            values={name: np.float32(value) for name, value in values.items()},
            reported={name: np.int32(step) for name, step in reported.items()},
            step=np.int32(self.step),
            epoch=np.int32(self.epoch),
            total_steps=np.int32(-1),
            closes_epoch=np.bool_(closes),
            host={},
        )
        self.state, actions = _call(hook, self.chain, self.state, metrics)
        return jc.fired(actions)

    def batch(self, loss: float) -> tuple[Any, ...]:
        self.step += 1
        return self.call("on_batch_end", {"loss": loss}, {"loss": self.step}, False)

    def report(self, hook: str, new: dict[str, float]) -> tuple[Any, ...]:
        self.values |= new
        self.reported |= dict.fromkeys(new, self.step)
        return self.call(hook, self.values, self.reported, True)


def _checkpoint(case: Case) -> Any:
    walk, saves = _Walk(case, jc.ModelCheckpoint(**case.arguments)), []
    by_epoch = case.arguments["save_freq"] == "epoch"

    def note(actions: tuple[Any, ...], batch: int) -> None:
        for action in actions:
            name = jc.actions.fill(action, step=walk.step, epoch=walk.epoch, batch=batch + 1)
            saves.append((walk.epoch, None if by_epoch else batch, name))

    for epoch, logs in enumerate(case.epochs):
        walk.epoch = epoch
        losses = case.batches[epoch] if case.batches else (0.0,)
        for batch, loss in enumerate(losses):
            note(walk.batch(loss), batch)
        validation = {name: value for name, value in logs.items() if name.startswith("val_")}
        if validation:
            note(walk.report("on_eval_end", validation), len(losses) - 1)
        note(walk.report("on_epoch_end", {"loss": logs["loss"]}), len(losses) - 1)
    return {"saves": saves}


def _terminate(case: Case) -> Any:
    walk = _Walk(case, jc.TerminateOnNaN())
    for epoch, losses in enumerate(case.batches):
        walk.epoch = epoch
        for batch, loss in enumerate(losses):
            if any(isinstance(action, jc.actions.Stop) for action in walk.batch(loss)):
                return {"stopped at": (epoch, batch)}
    return {"stopped at": None}


def _csv(case: Case) -> Any:
    with tempfile.TemporaryDirectory() as directory:
        callback = jc.CSVLogger("log.csv", **case.arguments)
        walk = _Walk(case, callback)
        with jc.Recorder(directory, callbacks=callback, verbose=0) as recorder:
            for epoch, logs in enumerate(case.epochs):
                walk.epoch, walk.step = epoch, epoch + 1
                validation = {name: value for name, value in logs.items() if name.startswith("val_")}
                for actions in (
                    walk.report("on_eval_end", validation),
                    walk.report("on_epoch_end", {"loss": logs["loss"]}),
                ):
                    recorder.perform(actions, step=walk.step, epoch=epoch)
        return {"rows": rows(Path(directory) / "log.csv", case)}


_OUTCOMES = {
    "EarlyStopping": _early_stopping,
    "ReduceLROnPlateau": _plateau,
    "ModelCheckpoint": _checkpoint,
    "TerminateOnNaN": _terminate,
    "LearningRateScheduler": _scheduler,
    "LearningRateScheduler with ReduceLROnPlateau": _both,
    "CSVLogger": _csv,
}
