"""`explain`: which actions fired in a recorded run, by which numbers, and what came nearest to firing.

A decision depends on the metrics only. So the callbacks of a run, made again from the description in its checkpoint,
decide on its history as they did in the run. Stops of callbacks that cannot be made again are those of the record.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb._src.core.actions.base import Action, LogAction
from jaxcb._src.core.actions.control import ScaleLearningRate, Stop, WeightAction
from jaxcb._src.core.actions.logging import Print
from jaxcb._src.core.actions.records import fired
from jaxcb._src.core.actions.utils import fill
from jaxcb._src.history.reader import Records
from jaxcb._src.replay.program import Replayed
from jaxcb._src.report.nearest import NearMiss, near_misses
from jaxcb._src.report.recorded import Recorded, recorded_callbacks, records_of, replayed
from jaxcb._src.report.run_folder import RunFolder

_TOLERANCE = 1e-4  # of the recorded factor on the rate, which is a quotient of two rounded numbers


class Event(NamedTuple):
    """An action that fired.

    Attributes:
        epoch: from 0; -1 before the first one.
        step: updates done.
        callback: the name of the callback that returned it.
        action: the name of its class.
        text: what it did, and by which numbers.
        numbers: the numbers, by name.
    """

    epoch: int
    step: int
    callback: str
    action: str
    text: str
    numbers: dict[str, float]


class Explanation(NamedTuple):
    """The decisions of a recorded run.

    Attributes:
        events: the actions that fired, in order.
        nearest: what came nearest to firing without doing so, the nearest first.
        unexplained: name of a callback -> why its decisions are not explained.
        problems: where the record contradicts the replayed decisions.
    """

    events: tuple[Event, ...]
    nearest: tuple[NearMiss, ...]
    unexplained: dict[str, str]
    problems: tuple[str, ...]


def explain(run_folder: RunFolder, member: int | None = None) -> Explanation:
    """Explains the decisions of a run.

    Args:
        run_folder: the run.
        member: a member of a sweep; None for a single run.

    Returns:
        The actions that fired in the history, including those of `on_train_end` if the run has ended, without log
        actions other than printed lines.

    Raises:
        DataError: for a history that is damaged, or has no such member.
    """
    records = records_of(run_folder, member)
    stops = run_folder.stops(member)
    if records is None:
        return Explanation((), (), {}, ())
    ended = run_folder.is_complete or (bool(stops) and member is not None)
    return explain_records(recorded_callbacks(run_folder, records), records, stops, ended=ended)


def explain_records(recorded: Recorded, records: Records, stops: Sequence[Any], *, ended: bool) -> Explanation:
    """Explains the decisions of callbacks on records.

    Args:
        recorded: the callbacks.
        records: of the run.
        stops: those that the run has noted, each with owner, reason, step and epoch.
        ended: whether the run has ended, and so called `on_train_end`.
    """
    callbacks, unexplained = recorded
    out = replayed(callbacks, records)
    names = dict(callbacks.items())
    events = list(_events(names, records, out, ended))
    known = {(e.callback, e.step) for e in events if e.action == "Stop"}
    for owner, reason, step, epoch, *_ in stops:
        if (owner, step) not in known:
            events.append(Event(epoch, step, owner, "Stop", f"{reason} (from the record)", {}))
    events.sort(key=lambda event: event.step)
    problems = tuple(_problems(records, out, stops, known, names))
    return Explanation(tuple(events), tuple(near_misses(names, records, out)), unexplained, problems)


def _events(names: Mapping[str, Any], records: Records, out: Replayed, ended: bool) -> Iterator[Event]:
    """Yields the actions that fired, in the order of the hooks."""
    for action in fired(out.begin):
        if _is_shown(action):
            yield _event(action, -1, 0, {})
    stacked = [(a, np.asarray(a.when)) for a in out.actions if _is_shown(a)]
    count = len(records.step)
    scale = np.concatenate([np.ones_like(out.scale[:1]), out.scale])
    for row in np.flatnonzero(np.any([when for _, when in stacked], axis=0) if stacked else np.zeros(count, bool)):
        for action in (a for a, when in stacked if when[row]):
            one = jax.tree.map(lambda x, row=row: x[row], action)
            numbers = _numbers(names.get(action.owner), action.owner, records, out, int(row))
            if isinstance(one, ScaleLearningRate):
                numbers |= {"factor": float(one.factor), **_rates(records, scale, one.of, int(row))}
            yield _event(one, int(records.epoch[row]), int(records.step[row]), numbers)
    if ended:
        last = min(int(np.argmax(out.stopped)) if out.stopped.any() else count - 1, count - 1)
        for action in fired(out.end):
            if _is_shown(action):
                yield _event(action, int(records.epoch[last]), int(records.step[last]), {})


def _is_shown(action: Action) -> bool:
    return not isinstance(action, LogAction) or isinstance(action, Print)


def _event(action: Action, epoch: int, step: int, numbers: dict[str, float]) -> Event:
    text = ""
    if action.template:
        text = fill(action, step=step, epoch=max(epoch, 0))
    elif isinstance(action, WeightAction):
        text = f"weights {action.slot!r}"
    elif isinstance(action, ScaleLearningRate):
        text = f"the learning rate{f' of {action.of}' if action.of else ''}"
        if "rate_after" in numbers:
            text += f" {numbers['rate_before']:.6g} -> {numbers['rate_after']:.6g}"
        elif "factor" in numbers:
            text += f" times {numbers['factor']:.6g}"
    shown = ", ".join(f"{n} {v:.6g}" for n, v in numbers.items() if n not in ("factor", "rate_before", "rate_after"))
    text = f"{text} ({shown})" if text and shown and not isinstance(action, Stop) else text or shown
    return Event(epoch, step, action.owner, type(action).__name__, text, numbers)


def _numbers(callback: Any, name: str, records: Records, out: Replayed, row: int) -> dict[str, float]:
    """Returns the numbers behind a decision: the monitored value, the best one before it, and the patience used up."""
    found: dict[str, float] = {}
    monitor = getattr(callback, "monitor", None)
    if isinstance(monitor, str) and monitor in records.names:
        found[monitor] = float(records.values[row, records.names.index(monitor)])
    state = out.each.get(name)
    best, wait = getattr(state, "best", None), getattr(state, "wait", None)
    if best is not None and row:
        found["best_before"] = float(np.asarray(best)[row - 1])
    if wait is not None and row:
        found["waited_before"] = float(np.asarray(wait)[row - 1])
    return found


def _rates(records: Records, scale: np.ndarray, of: str | None, row: int) -> dict[str, float]:
    """Returns a rate before and after a decision, if it was recorded and is the only one that was decided on."""
    names = list(records.rates) if of is None else [of]
    rate = records.rates.get(names[0]) if len(names) == 1 else None
    if rate is None or rate.base is None:
        return {}
    at = list(records.rates).index(names[0])
    base = float(rate.base[min(row + 1, len(rate.base) - 1)])
    return {"rate_before": base * float(scale[row, at]), "rate_after": base * float(scale[row + 1, at])}


def _problems(
    records: Records, out: Replayed, stops: Sequence[Any], known: set[tuple[str, int]], names: Mapping[str, Any]
) -> Iterator[str]:
    """Yields where the record differs from the replayed decisions: the callbacks were others for a part of the run."""
    recorded = {(owner, step) for owner, _, step, *_ in stops}
    for owner, step in sorted(known - recorded):
        yield f"{owner} would have stopped the run at step {step}, but the record has no such stop"
    for owner, step in sorted(recorded - known):
        if owner in names:
            yield f"{owner} stopped the run at step {step}, but its description in the checkpoint does not"
    for i, (of, rate) in enumerate(records.rates.items()):
        if rate.scale is None or len(records.step) == 1:
            continue
        # a row has the rate of its last update, so a decision is seen in the next row
        differs = ~np.isclose(rate.scale[1:], out.scale[:-1, i], rtol=_TOLERANCE, atol=0)
        if differs.any():
            row = int(np.argmax(differs))
            yield (
                f"the learning rate{f' of {of}' if of else ''} after step {records.step[row]} has the factor "
                f"{rate.scale[row + 1]:.6g}, and by the explained callbacks {out.scale[row, i]:.6g}"
            )
