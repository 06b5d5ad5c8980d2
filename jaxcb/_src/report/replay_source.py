"""What `jaxcb replay` replays on: a run with its own callbacks, or the log of another library."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcb._src.core.chain import Chain, chain
from jaxcb._src.core.metric_names import infer_mode_or_none
from jaxcb._src.history.logs import read_log
from jaxcb._src.history.reader import Records
from jaxcb._src.report.callback_text import make
from jaxcb._src.report.fetched import fetch
from jaxcb._src.report.find import is_run, open_run
from jaxcb._src.report.judge import monitor_of
from jaxcb._src.report.recorded import Recorded, recorded_callbacks, records_of
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.report.what_if import WhatIf, controls_of, what_if
from jaxcb._src.utils.address import Address
from jaxcb._src.utils.errors import DataError, MissingMetricError, did_you_mean
from jaxcb._src.utils.local_path import local_path_or_address


class Source(NamedTuple):
    """A recorded run and the callbacks to replay on it.

    Attributes:
        path: as it was given.
        records: the recorded metrics.
        callbacks: the callbacks to replay.
        recorded: the run's own callbacks; None for the log of another library, whose callbacks are not known.
        stops: the stops in the run's record.
        monitor: the metric by which the run is judged, and its direction; None if no name implies one.
    """

    path: str
    records: Records
    callbacks: Chain
    recorded: Recorded | None
    stops: Sequence[Any]
    monitor: tuple[str, str] | None

    @property
    def unexplained(self) -> dict[str, str]:
        """The callbacks of the run that cannot be replayed, and why."""
        return {} if self.recorded is None else self.recorded.unexplained


def open_source(path: str | Path, member: int | None = None, texts: Sequence[str] = ()) -> Source:
    """Reads a run, or a log of another library.

    Args:
        path: of the run or the log.
        member: a member of a sweep.
        texts: callbacks to replay instead of the run's own, such as `EarlyStopping(patience=3)`.

    Raises:
        FileNotFoundError: if there is no such path.
        DataError: for a damaged or unknown log, or one without records.
        CallbackTextError: for a text that is not a callback.
    """
    given = [make(text) for text in texts]
    address = local_path_or_address("jaxcb", "path", path)
    place = fetch(address) if isinstance(address, Address) else address
    if not (place.is_dir() and is_run(place)):
        records = read_log(place)
        return Source(str(address), records, chain(*given), None, (), monitor_of(records.names))
    folder = RunFolder(place, address=address) if isinstance(address, Address) else open_run(address)
    records = records_of(folder, member)
    if records is None:
        raise DataError(f"{path} has no records yet, so there is nothing to replay.")
    recorded = recorded_callbacks(folder, records)
    callbacks = chain(*given) if given else _deciding(recorded.chain)
    return Source(str(address), records, callbacks, recorded, folder.stops(member), folder.monitor)


def _deciding(callbacks: Chain) -> Chain:
    """Returns the callbacks that have numbers or a monitor: loggers decide nothing."""
    return chain(*(c for c in callbacks.callbacks if getattr(c, "monitor", None) is not None))


def replay_source(
    source: Source,
    settings: Mapping[str, list[float | int]],
    judged_by: tuple[str | None, str | None] = (None, None),
    learning_rate: float | None = None,
) -> WhatIf:
    """Replays all combinations of settings.

    Args:
        source: the run and its callbacks.
        settings: `EarlyStopping.patience` -> its values.
        judged_by: the metric and its direction; None to take them from the callbacks or the names.
        learning_rate: base rate, or None for the recorded one.

    Raises:
        DataError: if there are no callbacks to replay.
        MissingMetricError: for a metric that the run did not report; lists those that it did.
    """
    if not source.callbacks.callbacks:
        what = (
            "the log of another library has no callbacks" if source.recorded is None else "none of its own can be made"
        )
        raise DataError(
            f"{source.path}: there are no callbacks to replay, because {what}. Pass some, such as "
            "--callback \"EarlyStopping(monitor='val_loss', patience=3)\"."
        )
    names = dict(source.callbacks.items())
    for setting in settings:
        owner = setting.removeprefix("callbacks.").rpartition(".")[0]
        if owner not in names:
            raise DataError(
                f"there is no callback {owner!r} to set a number of; callbacks: {', '.join(names)}."
                f"{did_you_mean(owner, names)}"
            )
    paths = [f"callbacks.{name.removeprefix('callbacks.')}" for name in settings]
    points = [dict(zip(paths, values, strict=True)) for values in itertools.product(*settings.values())]
    own = controls_of(source.records, source.recorded, source.stops, learning_rate)
    monitor = _monitor(source, judged_by)
    return what_if(source.callbacks, source.records, own, points, monitor=monitor, learning_rate=learning_rate)


def _monitor(source: Source, judged_by: tuple[str | None, str | None]) -> tuple[str, str]:
    """Returns the metric by which configurations are judged, and its direction."""
    name, mode = judged_by
    known = source.records.names
    for callback in source.callbacks.callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor in known and name in (None, monitor):
            name = monitor
            own = getattr(callback, "mode", None)
            mode = mode or (own if own in ("min", "max") else None)
            break
    if name is None and source.monitor is not None:
        name, mode = source.monitor[0], mode or source.monitor[1]
    if name is None or name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise MissingMetricError(
            f"{source.path} has no metric {name!r}; it has {listed}.{did_you_mean(name or '', known)} "
            "Pass --monitor NAME."
        )
    mode = mode or infer_mode_or_none(name)
    if mode is None:
        raise DataError(f"the name {name!r} does not say whether lower or higher is better. Pass --mode min or max.")
    return name, mode
