"""What a run of a given length never does, although it was requested: said before the first step."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxcb._src.callbacks.gradient_accumulation import GradientAccumulation
from jaxcb._src.callbacks.model_checkpoint import ModelCheckpoint
from jaxcb._src.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from jaxcb._src.callbacks.swap_ema_weights import SwapEMAWeights
from jaxcb._src.core.actions.control import Restore, Swap
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import Chain
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.loop.compiled.position import EvalSchedule, HostPosition
from jaxcb._src.loop.compiled.program_spec import ProgramSpec
from jaxcb._src.training.probes import Probe
from jaxcb._src.writers.base import Context

# callback -> fields that say when it first acts: the number of a step or an epoch from 1 on, or of an epoch from 0 on
_BEGINNINGS: dict[type[Callback], dict[str, str]] = {
    ModelCheckpoint: {"save_freq": "step", "every_n_epochs": "epoch"},
    StochasticWeightAveraging: {"start_epoch": "epoch from 0"},
    SwapEMAWeights: {"start_step": "step", "start_epoch": "epoch from 0"},
}


def warn_of_what_never_comes(
    place: HostPosition,
    config: Any,
    callbacks: Chain,
    probes: Mapping[str, Probe],
    spec: ProgramSpec,
    context: Context,
) -> None:
    """Warns, before the first step, of what is requested and cannot happen in a run of this length.

    Says nothing of a trial run, which is short on purpose.

    Args:
        place: the position at which the run begins, and its length.
        config: the configuration of the run.
        callbacks: its callbacks.
        probes: name -> probe.
        spec: the hooks of its program.
        context: takes the warnings.

    Raises:
        ValueError: for gradients that are accumulated longer than the run, which would train nothing.
    """
    if config.is_trial:
        return
    total = math.inf if place.total_steps < 0 else place.total_steps
    epochs = min(place.end_epoch, math.ceil(total / place.epoch_len) if total < math.inf else math.inf)
    epochs = math.inf if epochs >= UNBOUNDED else epochs
    schedule = place.schedule
    if schedule is not None and schedule.steps is None:
        first = schedule.epochs if isinstance(schedule.epochs, int) else min(schedule.epochs)
        if first > epochs:
            context.warn(
                f"no validation comes in this run of {epochs} epochs: the first one is that of epoch {first} "
                "(validation_freq). So there is no val_ metric, and a callback that monitors one never acts."
            )
    for name, probe in probes.items():
        if probe.every > total:
            context.warn(f"the metric {name!r} is measured every {probe.every} steps, and this run has {total}.")
    if schedule is None:
        _warn_of_unused_validation(config, context)
    for name, callback in callbacks.items():
        for field, first in _first_times(callback, total, epochs):
            context.warn(
                f"{name} does nothing in this run of {_length(total, epochs)}: it begins at {first} ({field})."
            )
    _check_accumulation(callbacks, total, place.epoch_len, context)
    _warn_of_undone_weights(spec, context)


def _check_accumulation(callbacks: Chain, total: float, epoch_len: int, context: Context) -> None:
    """Refuses an accumulation that is longer than the run, and warns of one that its end cuts off."""
    for name, callback in callbacks.items():
        if not isinstance(callback, GradientAccumulation) or total == math.inf:
            continue
        known = callback.updates_in(int(total), epoch_len)
        if known is None:  # said at the end of the run
            continue
        updates, used = known
        words = f"{name} updates once in {callback.steps} steps" if isinstance(callback.steps, int) else name
        if not updates:
            raise ValueError(
                f"{words}, and this run has {total}: it would train nothing. Accumulate over fewer steps, or train "
                "longer."
            )
        if used < total:
            context.warn(
                f"{words}, and this run has {total}: the gradients of the last {int(total) - used} are not applied."
            )


def _warn_of_undone_weights(spec: ProgramSpec, context: Context) -> None:
    """Warns of weights that one callback restores at the end of the run, and another one then replaces."""
    last = spec.actions_of("on_train_end")
    for index, action in enumerate(last):
        for later in last[index + 1 :]:
            if isinstance(action, Restore) and isinstance(later, Swap | Restore) and later.owner != action.owner:
                context.warn(
                    f"{action.owner} restores its weights at the end of the run, and then {later.owner}, which "
                    f"stands after it, sets others. Put {action.owner} after {later.owner} to end with its weights."
                )


def _first_times(callback: Callback, total: float, epochs: float) -> Iterator[tuple[str, str]]:
    """Yields the fields of a callback that let it begin after the end of the run, and when they do."""
    for field, unit in _BEGINNINGS.get(type(callback), {}).items():
        value = getattr(callback, field)
        if not isinstance(value, int) or getattr(callback, "save_at_end", False):
            continue
        if unit == "epoch from 0":
            value, unit = value + 1, "epoch"
        if value > (total if unit == "step" else epochs):
            yield f"{field}={getattr(callback, field)}", f"{unit} {value}"


def _length(total: float, epochs: float) -> str:
    parts = [f"{n:.0f} {unit}" for n, unit in ((epochs, "epochs"), (total, "steps")) if n < math.inf]
    return " and ".join(parts)


def _warn_of_unused_validation(config: Any, context: Context) -> None:
    """Says which arguments of a validation have no effect, because there is none."""
    of_validation = {
        "validation_freq": config.cadence.epochs != EvalSchedule(1, None).epochs,
        "eval_every": config.cadence.steps is not None,
        "validation_steps": config.validation.steps is not None,
        "validation_batch_size": config.validation.batch_size != config.data.batch_size,
    }
    unused = [name for name, is_set in of_validation.items() if is_set]
    if unused:
        context.warn(
            f"there is no validation, and so no use of {', '.join(unused)}: pass validation_data= or validation_split=."
        )
