"""Decides where a run starts: new, from a checkpoint, or from the result of a completed run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcb._src.checkpointing import manifest as _manifest
from jaxcb._src.checkpointing.checkpointer import Checkpointer
from jaxcb._src.checkpointing.layout import CHECKPOINTS, RESULT, TABLE, checkpoints_in
from jaxcb._src.checkpointing.manifest import Saved
from jaxcb._src.checkpointing.request import compare, is_other
from jaxcb._src.checkpointing.store import remove_store
from jaxcb._src.core.chain import Chain
from jaxcb._src.data.progress import FeedStart
from jaxcb._src.distributed.processes import Processes
from jaxcb._src.history.reader import JOURNAL
from jaxcb._src.storage.ownership import CURE, FOLDER, RECORD, RunRecord
from jaxcb._src.utils.local_path import check_no_link_out
from jaxcb._src.writers.base import Context

# what each process has of its own in the position of its data, and the name for that of all
_OWN = {"iterator": "iterators", "checksum": "checksums", "first": "firsts"}


def merge_process_positions(positions: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Merges the positions of all processes, in their order."""
    first = positions[0]
    if first is None or len(positions) == 1:
        return first
    merged = {name: value for name, value in first.items() if name not in _OWN}
    for own, of_all in _OWN.items():
        values = [position.get(own) if position else None for position in positions]
        if None not in values:
            merged[of_all] = values
    return merged


def position_for_process(position: dict[str, Any] | None, index: int, count: int) -> dict[str, Any] | None:
    """Returns the position of one process.

    The states of iterators are dropped if the number of processes has changed. The data is then iterated again.
    """
    if position is None:
        return None
    common = {name: value for name, value in position.items() if name not in (*_OWN, *_OWN.values())}
    for own, of_all in _OWN.items():
        values = position.get(of_all, [position[own]] if own in position else [])
        if len(values) == count:
            common[own] = values[index]
    return common


_FILES = ("history.csv", JOURNAL)
_STORES = (CHECKPOINTS, RESULT)


class ResumePlan(NamedTuple):
    """Where a run starts.

    Attributes:
        record: record of the run: its id and its files.
        keeper: writes checkpoints; None for a run without a directory.
        saved: the checkpoint to start from; None for a new run.
        completed: whether that is the result of a completed run.
        stop_cleared: whether the stop that ended the run no longer applies, because the arguments have changed.
        to_delete: files of another run, or stale ones, to delete when the run begins.
    """

    record: RunRecord
    keeper: Checkpointer | None = None
    saved: Saved | None = None
    completed: bool = False
    stop_cleared: bool = False
    to_delete: "Replaced | None" = None

    def begin(self) -> None:
        """Deletes the files to replace and begins the record. Called when nothing can fail any more."""
        if self.to_delete is not None:
            for store in self.to_delete.stores:
                remove_store(store, self.to_delete.run)
            for path in self.to_delete.files:
                path.unlink(missing_ok=True)
        if not self.record.begun:
            self.record.begin()

    @property
    def files(self) -> dict[str, Any]:
        """Offsets of the log files.

        Raises:
            ValueError: if the checkpoint contains none.
        """
        if self.saved is None:
            return {}
        places = self.saved.facts.get("files")
        if not isinstance(places, dict):
            raise ValueError(f"{self.saved.path} has no valid offsets of the run's files: {places!r}.")
        return places

    @property
    def inherits(self) -> bool:
        """Whether it starts from a checkpoint that was written before runs had ids."""
        return self.saved is not None and self.saved.run is None

    def feed(self, processes: Processes) -> FeedStart | None:
        """Returns the position of this process's data; None for the beginning."""
        if self.saved is None or self.completed:
            return None
        facts = self.saved.facts
        position = position_for_process(facts["feed"], processes.index, processes.count)
        return FeedStart(facts["epoch"], facts["cursor"], facts["step"], position)


class Replaced(NamedTuple):
    """Files of a run to delete.

    Attributes:
        run: id of the run; None if it began before runs had ids.
        stores: directories of checkpoints; only those of the run are deleted.
        files: other files of the run.
    """

    run: str | None
    stores: tuple[Path, ...]
    files: tuple[Path, ...] = ()


class _ExistingRun(NamedTuple):
    """What a directory contains of a run.

    Attributes:
        run: id of the run; None if it has none.
        made: keys of the files that it has written.
        files: log files that exist.
        holds: whether there is anything that must not be overwritten without `overwrite=True`.
    """

    run: str | None
    made: Mapping[str, tuple[str, ...]]
    files: tuple[Path, ...]
    holds: bool


def find_start(
    context: Context,
    *,
    callbacks: Chain,
    config: Mapping[str, Any],
    resume: bool,
    overwrite: bool,
    on_save_error: str,
) -> ResumePlan:
    """Reads a run directory and decides where the run starts.

    Args:
        context: of the run, which has a directory. It reports damaged checkpoints; process 0 reads.
        callbacks: the callbacks of the run.
        config: the requested training, as JSON: length, data and callbacks.
        resume: whether to resume a run that exists.
        overwrite: whether to replace a run that exists.
        on_save_error: "raise" or "warn".

    Raises:
        FileExistsError: if a run exists and neither `resume` nor `overwrite` is given, or if a file of unknown origin
            would be overwritten.
        OSError: for a directory that cannot be used.
        ValueError: for a run whose checkpoints are missing, or of which a link leads out of the directory.
    """
    directory, processes, say = context.run_dir, context.processes, context.say
    assert directory is not None
    if processes.is_primary:
        for name in (*_STORES, *_FILES, f"{FOLDER}/{RECORD}"):
            check_no_link_out(directory, directory / name)
    if resume and overwrite:
        raise ValueError(
            "resume=True and Checkpointing(overwrite=True) were both given: a run is either resumed or replaced."
        )
    existing = processes.broadcast_from_primary(lambda: _run_in(directory))
    if existing.holds and not resume and not overwrite:
        raise FileExistsError(
            f"{directory} already holds a run. Pass resume=True to resume it, "
            "checkpointing=jc.Checkpointing(overwrite=True) to replace it, or another run_dir."
        )
    run = processes.broadcast_from_primary(
        lambda: RunRecord().run if overwrite or existing.run is None else existing.run
    )
    record = RunRecord(directory if processes.is_primary else None, run)
    if processes.is_primary and existing.run == run:
        record = RunRecord.read(directory) or record
    record.made |= existing.made
    keeper = Checkpointer(directory, callbacks, config, context, on_save_error, run)
    if overwrite:
        stores = tuple(directory / name for name in _STORES)
        return ResumePlan(record, keeper, to_delete=Replaced(existing.run, stores, existing.files))
    training, result = keeper.find_latest()
    if training is None:  # new, or killed before its first checkpoint
        result_of_it = [f"{RESULT}/{result.path.name}"] if result is not None else []
        traces = [path.name for path in existing.files] or result_of_it
        # a record from which no log was begun is that of a run that was killed before its first checkpoint
        if traces:
            raise ValueError(
                f"{directory} has {', '.join(traces)} of a run, but no checkpoint of it in "
                f"{directory / CHECKPOINTS}. Restore it from a backup to resume, or pass "
                "checkpointing=jc.Checkpointing(overwrite=True) to start again."
            )
        return ResumePlan(record, keeper)
    facts = training.facts
    record.check(facts.get("record"))
    found = compare(facts["config"], config, facts)
    found.refuse(directory)
    found.warn(directory, training.step, context.warn)
    stop_cleared_now = _is_stop_cleared(facts, config)
    ended = result is not None and result.step == training.step and facts["over"] and not stop_cleared_now
    # other epochs alone train nothing more; anything else may change what is done at the end
    if result is not None and ended and found.only_lengths:
        how = "stopped" if result.facts["stops"] else "finished"
        say(f"jaxcb: the run in {directory} has {how} at step {result.step}; this is its result.")
        return ResumePlan(record, keeper, result, completed=True)
    say(f"jaxcb: resuming {directory} at step {training.step}, in epoch {facts['epoch'] + 1}.")
    stale = Replaced(run, (directory / RESULT,)) if result is not None else None
    return ResumePlan(record, keeper, training, stop_cleared=stop_cleared_now, to_delete=stale)


def _run_in(directory: Path) -> _ExistingRun:
    """Returns what a directory contains of a run. Creates the directory if it is missing.

    Raises:
        FileExistsError: for a log file that no record names.
    """
    directory.mkdir(parents=True, exist_ok=True)
    saves = [path for name in _STORES for path in checkpoints_in(directory / name)]
    record = RunRecord.read(directory)
    if record is not None:
        run, made = record.run, dict(record.made)
    else:  # an old run, or a lost record: use its newest readable checkpoint
        run, made = None, {}
        for path in saves:
            try:
                saved, _ = _manifest.read(path)
            except _manifest.UnusableError:
                continue
            run = saved.run or run
            files = saved.facts.get("files")
            made |= {key: () for key in _FILES if isinstance(files, dict) and key in files}
        if saves and (directory / TABLE).exists():
            made[TABLE] = ()
    files = tuple(directory / name for name in _FILES if (directory / name).exists())
    for path in files:
        if path.name not in made:
            if record is not None and any(_names(save, record.run, path.name) for save in saves):
                raise ValueError(
                    f"{directory / FOLDER / RECORD}, the record of the run's files, was cut: a checkpoint of the run "
                    f"names {path.name}, and the record does not. {CURE}"
                )
            raise FileExistsError(
                f"{path} is in the way: a run writes a file of that name, and no record in {directory} shows that this "
                "file belongs to a run. Move it, or pass another run_dir."
            )
    return _ExistingRun(run, made, files, bool(saves or files))


def _names(checkpoint: Path, run: str, name: str) -> bool:
    """Returns whether a checkpoint is one of the run, and names a file of it."""
    try:
        saved, _ = _manifest.read(checkpoint)
    except _manifest.UnusableError:
        return False
    position = (saved.facts.get("files") or {}).get(name)
    return saved.run == run and bool(position.get("lines") if isinstance(position, dict) else position)


def _is_stop_cleared(facts: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Returns whether the stop of a completed run no longer applies with the new arguments."""
    epochs, steps = config["epochs"], config["steps"]
    if (epochs is not None and facts["epoch"] >= epochs) or (steps is not None and facts["step"] >= steps):
        return False
    before, now = facts["config"]["callbacks"], config["callbacks"]
    return all(is_other(before.get(owner), now.get(owner)) for owner, *_ in facts["stops"])
