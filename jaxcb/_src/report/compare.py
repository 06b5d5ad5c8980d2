"""`compare`: where runs part, in numbers and decisions, and what they were made with."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcb._src.core.metric_names import as_text
from jaxcb._src.history.reader import Records
from jaxcb._src.report.judge import reports_of
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.utils.names import rate_metric


class Parting(NamedTuple):
    """The first difference of two runs.

    Attributes:
        epoch: from 0.
        step: updates done.
        what: a metric, a decision, or "length".
        first: what the first run has there.
        second: what the second run has there.
    """

    epoch: int
    step: int
    what: str
    first: str
    second: str


class Comparison(NamedTuple):
    """How a run differs from another one.

    Attributes:
        numbers: where the first recorded number differs; None if all that both have are equal, bit for bit.
        decisions: where the first decision differs; None if all are equal.
        settings: name -> its values in both; of those that differ.
        only: metrics that only one of the runs reports.
    """

    numbers: Parting | None
    decisions: Parting | None
    settings: dict[str, tuple[Any, Any]]
    only: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether there is any difference in numbers or decisions."""
        return self.numbers is not None or self.decisions is not None


def compare(first: RunFolder, others: Sequence[RunFolder], member: int | None = None) -> list[Comparison]:
    """Compares runs with the first one.

    Args:
        first: a run.
        others: those to compare it with.
        member: the member of sweeps to compare; None for single runs.

    Raises:
        DataError: for a damaged history, or a member that does not exist.
    """
    from jaxcb._src.report.explain import explain
    from jaxcb._src.report.recorded import records_of

    def decisions(run: RunFolder) -> list[Any]:
        return [(e.epoch, e.step, _name(e), e.text) for e in explain(run, member).events]

    one, decided = records_of(first, member), decisions(first)
    found = []
    for run in others:
        other = records_of(run, member)
        numbers, only = (None, ()) if one is None or other is None else first_difference(one, other)
        if (one is None) != (other is None):
            numbers = Parting(0, 0, "length", f"{_count(one)} records", f"{_count(other)} records")
        parted = first_decision(decided, decisions(run))
        found.append(Comparison(numbers, parted, setting_differences(first.settings, run.settings), only))
    return found


def _count(records: Records | None) -> int:
    return 0 if records is None else len(records.step)


def first_difference(one: Records, other: Records) -> tuple[Parting | None, tuple[str, ...]]:
    """Returns where the recorded numbers first differ in any bit, and the metrics that only one has."""
    both = [name for name in one.names if name in other.names]
    only = tuple(sorted({*one.names} ^ {*other.names}))
    count = min(len(one.step), len(other.step))
    rows = [
        (name, (int(one.step[i]), int(one.epoch[i])), as_text(a[i]), as_text(b[i]))
        for name, a, b in _columns(one, other, both, count)
        if (i := _first(a, b)) is not None
    ]
    if rows:
        name, (step, epoch), a, b = min(rows, key=lambda row: row[1][0])
        return Parting(epoch, step, name, a, b), only
    if len(one.step) != len(other.step):
        longer = one if len(one.step) > count else other
        lengths = (f"{len(run.step)} records" for run in (one, other))
        return Parting(int(longer.epoch[count]), int(longer.step[count]), "length", *lengths), only
    return None, only


def _columns(one: Records, other: Records, names: Sequence[str], count: int) -> Any:
    yield "step", one.step[:count], other.step[:count]
    yield "epoch", one.epoch[:count], other.epoch[:count]
    for name in names:
        yield name, reports_of(one, name)[:count], reports_of(other, name)[:count]
    for of in (name for name in one.rates if name in other.rates):
        a, b = one.rates[of].effective, other.rates[of].effective
        if a is not None and b is not None:
            yield rate_metric("learning_rate", of), a[:count], b[:count]


def _first(a: np.ndarray, b: np.ndarray) -> int | None:
    equal = (a == b) | ((a != a) & (b != b))
    return None if equal.all() else int(np.argmin(equal))


def _name(event: Any) -> str:
    factor = event.numbers.get("factor")
    return f"{event.callback} {event.action}{'' if factor is None else f' by {factor:.6g}'}"


def first_decision(one: Sequence[Any], other: Sequence[Any]) -> Parting | None:
    """Returns where two sequences of decisions first differ."""
    for a, b in zip(one, other, strict=False):
        if a[:3] != b[:3]:  # not the text: its numbers may differ where the decision is the same
            epoch, step = min((a, b), key=lambda e: e[1])[:2]
            name = a[2] if a[1] <= b[1] else b[2]
            return Parting(epoch, step, name, _decision(a, step), _decision(b, step))
    if len(one) != len(other):
        count = min(len(one), len(other))
        rest = (one if len(one) > count else other)[count]
        shown = [_decision(events[count] if len(events) > count else None, rest[1]) for events in (one, other)]
        return Parting(rest[0], rest[1], rest[2], *shown)
    return None


def _decision(event: Any, step: int) -> str:
    return "nothing" if event is None or event[1] != step else f"{event[2]}: {event[3]}"


def setting_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ; of a callback that only one run has, its name alone."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in dict.fromkeys((*one, *other)):
        owner = name.partition(".")[0]
        if owner != name and (owner in one) != (owner in other):
            continue
        if str(one.get(name)) != str(other.get(name)):
            found[name] = (one.get(name), other.get(name))
    return found
