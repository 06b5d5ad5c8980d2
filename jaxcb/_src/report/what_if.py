"""`what_if`: what other callbacks would have done on a recorded run, and until where the record says so.

A record holds for a configuration until its first control action that the run itself did not take, or the first of the
run's that it does not take: from there on the run would have been another one. That action is still exact, since it was
decided on what was recorded. Nothing is claimed beyond it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.core.chain import Chain, chain, stacked_callbacks
from jaxcb._src.history.reader import Records
from jaxcb._src.replay.grid import by_structure, host_device
from jaxcb._src.replay.program import ReplaySpec, Rows, program_of, replay_function, run
from jaxcb._src.report.judge import best_of, reports_of
from jaxcb._src.report.recorded import Recorded, replayed
from jaxcb._src.sweep.overrides import with_overrides
from jaxcb._src.sweep.space import Point
from jaxcb._src.training.training_config import TrainingConfig
from jaxcb._src.utils.names import rate_metric
from jaxcb._src.utils.pytree import to_strong_types

_TOLERANCE = 1e-5  # of factors on the rate
STOPS, ENDS, DIFFERS = "stops", "continues", "differs"


class Controls(NamedTuple):
    """The control actions of a run as far as they show after each record.

    Attributes:
        stopped: bool (records,).
        scale: the factors on the learning rates, float32 (records, rates); NaN where one is unknown.
        others: a number that differs where other control actions do, float32 (records,).
    """

    stopped: Any
    scale: Any
    others: Any


@dataclass(frozen=True)
class WhatIf:
    """What configurations of callbacks would have done.

    Attributes:
        points: the values of each configuration, by path.
        records: the recorded run.
        monitor: the metric by which they are judged, and "min" or "max".
        outcome: "stops", "continues" or "differs" of each: what happens where its record ends.
        stopped_epoch: the epoch (from 0) of each stop that the record holds for, int64 (configurations,); -1 for none.
        held: the index of the last record that holds for each, int64 (configurations,).
        lr_scales: the factor on each learning rate after it: name -> float32 (configurations,).
    """

    points: tuple[Point, ...]
    records: Records = field(repr=False)
    monitor: tuple[str, str]
    outcome: tuple[str, ...] = field(repr=False)
    stopped_epoch: np.ndarray = field(repr=False)
    held: np.ndarray = field(repr=False)
    lr_scales: dict[str, np.ndarray] = field(repr=False)

    def __len__(self) -> int:
        return len(self.points)

    @property
    def best(self) -> np.ndarray:
        """The best report of the monitor up to the last record that holds, float64 (configurations,)."""
        name, mode = self.monitor
        values = reports_of(self.records, name).astype(np.float64)
        running = (np.fmin if mode == "min" else np.fmax).accumulate(values)
        return running[self.held]

    def columns(self) -> dict[str, list[Any]]:
        """Returns a row for each configuration, as columns by name; None where the record does not say."""
        name, mode = self.monitor
        best, epochs = self.best, self.records.epoch
        of_all = best_of(self.records, name, mode)
        sign = 1 if mode == "min" else -1
        stops = np.asarray([outcome == STOPS for outcome in self.outcome])
        lost = sign * (best - (of_all[0] if of_all else np.nan))
        paths = self.points[0] if self.points else ()
        found: dict[str, list[Any]] = {
            path.removeprefix("callbacks."): [p[path] for p in self.points] for path in paths
        }
        found["outcome"] = list(self.outcome)
        found["stopped_epoch"] = [int(e) if s else None for e, s in zip(self.stopped_epoch, stops, strict=True)]
        found[f"best_{name}"] = best.tolist()
        found["epochs_saved"] = [
            int(epochs[-1] - e) if s else None for e, s in zip(self.stopped_epoch, stops, strict=True)
        ]
        known = stops | np.asarray([outcome == ENDS for outcome in self.outcome])
        found["value_lost"] = [float(x) if k else None for x, k in zip(lost, known, strict=True)]
        found |= {rate_metric("lr_scale", of): scale.tolist() for of, scale in self.lr_scales.items()}
        found["holds_until_epoch"] = epochs[self.held].tolist()
        found["holds_until_step"] = self.records.step[self.held].tolist()
        return found


def controls_of(records: Records, recorded: Recorded | None, stops: Sequence[Any], learning_rate: Any) -> Controls:
    """Returns the control actions that the recorded run itself took.

    Args:
        records: the run.
        recorded: its callbacks, made again; None for a log of another library, of which no action is known.
        stops: the stops of its record.
        learning_rate: base rate, or None for the recorded one.
    """
    count = len(records.step)
    callbacks = chain() if recorded is None else recorded.chain
    out = replayed(callbacks, records, learning_rate)
    stopped = np.asarray(out.stopped).copy()
    for stop in stops:
        stopped |= records.step >= stop[2]
    scale = np.array(out.scale, np.float32)
    if recorded is not None and recorded.unexplained:
        # actions of callbacks that cannot be made again show in the recorded rate, one record later
        for i, rate in enumerate(records.rates.values()):
            if rate.scale is not None:
                scale[:, i] = np.append(rate.scale[1:], np.float32(np.nan))
    return Controls(stopped, scale, np.broadcast_to(np.asarray(out.controls, np.float32), (count,)))


def what_if(
    callbacks: Chain,
    records: Records,
    own: Controls,
    over: Sequence[Point],
    *,
    monitor: tuple[str, str],
    learning_rate: Any = None,
) -> WhatIf:
    """Replays each configuration; those with equal structure run in one program.

    Args:
        callbacks: the callbacks.
        records: the recorded run.
        own: the control actions of the run itself.
        over: path -> number for each configuration.
        monitor: the metric by which they are judged, and its direction.
        learning_rate: base rate, or None for the recorded one.

    Raises:
        ValueError: for an unknown path or a value out of range; names near ones.
        MissingMetricError: for a monitor that the run did not report; lists those that it did.
    """
    base = TrainingConfig(0, None, None, callbacks)
    chains = [with_overrides(base, point).callbacks for point in over]
    spec, rows = program_of(records, learning_rate)
    count = len(chains)
    held, stop_at = np.zeros(count, np.int64), np.zeros(count, np.int64)
    scale = np.zeros((count, len(spec.rates)), np.float32)
    differs = np.zeros(count, bool)
    for index in by_structure(chains):
        held[index], differs[index], stop_at[index], scale[index] = _run([chains[i] for i in index], spec, (rows, own))
    last = len(records.step)
    stops = (stop_at < last) & (stop_at <= held)
    held = np.where(stops, stop_at, held)
    # beyond the last record there is nothing to say, also for a run that stopped there and here would not have
    at_end = ~stops & (~differs | (held == last - 1))
    outcome = np.where(stops, STOPS, np.where(at_end, ENDS, DIFFERS))
    epoch = np.where(stops, records.epoch[np.minimum(stop_at, last - 1)], -1)
    scales = {name: scale[:, i] for i, name in enumerate(spec.rates)}
    return WhatIf(tuple(over), records, monitor, tuple(outcome.tolist()), epoch, held, scales)


def _run(chains: Sequence[Chain], spec: ReplaySpec, inputs: tuple[Rows, Controls]) -> tuple[np.ndarray, ...]:
    """Returns of each the last record that holds, whether it differs there, its stop, and its factors on the rates."""
    whole, axes = stacked_callbacks(chains)
    mapped = tuple(axes) if any(axis == 0 for axis in axes) else ()
    with jax.default_device(device := host_device()):
        whole = jax.device_get(to_strong_types(whole))
        # `replay_function` hands its one argument to the function; here that is the rows and the run's own actions
        function: Any = replay_function("what if", _held, whole, spec, device, mapped)
        found = jax.device_get(function(inputs))
    return found if mapped else tuple(np.broadcast_to(x, (len(chains), *np.shape(x))) for x in found)


def _held(callbacks: Chain, inputs: Any, spec: ReplaySpec) -> Any:
    rows, own = inputs
    out = run(callbacks, rows, spec)
    scale = jnp.asarray(own.scale)
    close = jnp.isnan(scale) | (jnp.abs(out.scale - scale) <= _TOLERANCE * jnp.abs(scale))
    differ = (out.stopped != own.stopped) | ~close.all(axis=1) | (out.controls != own.others)
    count = len(out.stopped)
    any_differs = differ.any()
    held = jnp.where(any_differs, jnp.argmax(differ), count - 1)
    stop_at = jnp.where(out.stopped.any(), jnp.argmax(out.stopped), count)
    return held, any_differs, stop_at, out.scale[held]


def values_of(text: str) -> list[float | int]:
    """Returns the numbers that a text lists: `2..20`, `0.1..0.5..0.1` with a step, `0.1,0.5`, or both: `1,2,5..9`.

    Raises:
        ValueError: for anything else.

    Example:
        >>> values_of("1,2,5..7"), values_of("0.1..0.3..0.1")
        ([1, 2, 5, 6, 7], [0.1, 0.2, 0.3])
    """
    found: list[float | int] = []
    for part in text.split(","):
        ends = [_number(end, text) for end in part.split("..")]
        if len(ends) == 1:
            found += ends
            continue
        low, high, step = (*ends, 1)[:3]
        if len(ends) > 3 or not step > 0 or high < low:
            raise ValueError(f"{part!r} is not a range: expected LOW..HIGH or LOW..HIGH..STEP, such as 2..20.")
        if len(ends) == 2 and not all(isinstance(end, int) for end in ends):
            raise ValueError(f"{part!r} is a range of decimals, which needs a step: {part}..0.1.")
        count = int((high - low) / step + 1e-9) + 1
        if count > _MOST_VALUES:
            raise ValueError(f"{part!r} has {count} values, more than {_MOST_VALUES}.")
        found += [low + i * step if isinstance(low + step, int) else round(low + i * step, 12) for i in range(count)]
    return found


_MOST_VALUES = 1_000_000


def _number(text: str, whole: str) -> float | int:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise ValueError(
                f"{text!r} in {whole!r} is not a number; expected values such as 2..20 or 0.1,0.5."
            ) from None
