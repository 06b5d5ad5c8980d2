"""The base learning rates of a replay: those of the recording, or others."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxcb._src.history.reader import RecordedRate, Records
from jaxcb._src.training.learning_rate import checked_rate
from jaxcb._src.utils.errors import did_you_mean

Rate = float | optax.Schedule
Rates = Rate | Mapping[str, Rate]


class Bases(NamedTuple):
    """The base rates around each record, float32 (records,) each.

    Attributes:
        first: of the first update since the record before.
        last: of the last update before the record.
        following: of the first update after the record.
    """

    first: np.ndarray
    last: np.ndarray
    following: np.ndarray


def rate_names(records: Records, learning_rate: Rates | None) -> tuple[str, ...]:
    """Returns the names of the learning rates of a run; the only one has the name "".

    Args:
        records: the recorded run.
        learning_rate: as in `base_rates`.

    Raises:
        ValueError: for the name of a rate that was not recorded.
    """
    given = tuple(learning_rate) if isinstance(learning_rate, Mapping) else ()
    names = tuple(records.rates) or given or ("",)
    for name in given:
        if name not in names:
            raise ValueError(
                f"replay: learning_rate has a rate for {name!r}, which was not recorded; recorded: "
                f"{', '.join(n or 'one without a name' for n in names)}.{did_you_mean(name, names)}"
            )
    return names


def base_rates(records: Records, before: np.ndarray, learning_rate: Rates | None) -> list[Bases]:
    """Returns the base rates of a run, in the order of `rate_names`.

    Args:
        records: the recorded run.
        before: updates done at the record before each, int32 (records,).
        learning_rate: a number or a schedule, for each rate of the run; a dict of the names of its rates to these; None
            for what was recorded, or 1 if nothing was.

    Raises:
        ValueError: for the name of a rate that was not recorded, or a number out of range.
    """
    found = []
    for name in rate_names(records, learning_rate):
        given = learning_rate.get(name) if isinstance(learning_rate, Mapping) else learning_rate
        found.append(_bases(records, before, given, records.rates.get(name)))
    return found


def _bases(records: Records, before: np.ndarray, learning_rate: Any, recorded: RecordedRate | None) -> Bases:
    if learning_rate is not None:
        learning_rate = checked_rate("replay", learning_rate)
    if callable(learning_rate):

        def at(count: np.ndarray) -> np.ndarray:
            return np.asarray(jax.vmap(learning_rate)(count), np.float32)

        return Bases(at(before), at(records.step - 1), at(records.step))
    if learning_rate is None and recorded is not None and recorded.base is not None:
        # A record has the rate of the last update before it; within an epoch it is assumed to be constant.
        base = recorded.base
        return Bases(base, base, np.append(base[1:], base[-1:]))
    value = 1.0 if learning_rate is None else learning_rate
    constant = np.full(len(records.step), value, np.float32)
    return Bases(constant, constant, constant)


def only_rate(owner: str, of: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the value for the only learning rate of a run.

    Raises:
        ValueError: if the run has several.
    """
    if len(of) != 1:
        names = ", ".join(of)
        raise ValueError(
            f"{owner}: the run has the learning rates {names}; read one of them: lr_scales[{next(iter(of))!r}]."
        )
    return next(iter(of.values()))
