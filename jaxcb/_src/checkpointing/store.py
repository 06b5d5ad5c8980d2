"""The store in which a run keeps its own checkpoints: named arrays and facts.

Orbax writes the arrays. When a checkpoint counts, which ones stay and what happens on a fault is decided here.
"""

import contextlib
import errno
import json
import logging
import math
import os
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxcb._src.checkpointing import manifest as _manifest
from jaxcb._src.checkpointing.arrays import array_entries, check, copied_on_devices, restore
from jaxcb._src.checkpointing.manifest import ArrayEntry, DamagedError, Saved, UnusableError
from jaxcb._src.distributed.processes import SINGLE_PROCESS, Processes
from jaxcb._src.storage import orbax as _orbax

_CHECKPOINT = re.compile(r"step_(\d{9,})(?:-(\d+))?")  # the second number where a step was saved again
_NO_RUN = "0" * 16  # the id where nobody gives one
_ARRAYS = "arrays"  # Orbax's directory in each checkpoint
_TOLD = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.ENOENT, errno.ENOTDIR, errno.EIO)


class Store:
    """Keeps checkpoints of one run in a directory. One save is in flight at a time, written by a thread of its own.

    Whatever else is in the directory stays: a checkpoint is deleted by the files that its manifest names, and what a
    killed process left has the run's id in its name.

    Close it on every way out (`contextlib.closing`): a process that ends before loses the save in flight.

    Of several processes each writes its own part of the arrays; all else is done by process 0. They call `save`,
    `latest` and `load` together.

    Args:
        directory: for checkpoints alone; made by the first save.
        keep: how many of the newest stay; the best one stays besides.
        say: is given one line for each thing that the user should know.
        on_error: "raise", or "warn" to say it and go on with the checkpoints there are.
        processes: of the run.
        run: the run's id. Checkpoints whose facts name another `run` are not the run's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        run: str = _NO_RUN,
        keep: int = 2,
        say: Callable[[str], None],
        on_error: str = "raise",
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}.")
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error must be 'raise' or 'warn', got {on_error!r}.")
        self.directory = Path(directory).absolute()  # Orbax takes no relative ones
        self._run, self._keep, self._say, self._on_error = run, keep, say, on_error
        self._processes = processes
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._silent = False  # whether a fault was told and lasts
        self._best: dict[str, float | None] = {}  # by name, None where there is no value
        self._unusable: dict[str, UnusableError] = {}
        self._unlock: Callable[[], Any] = lambda: None
        self._open = False
        if processes.is_primary and self.directory.is_dir():
            self._clean()

    @property
    def failed(self) -> OSError | None:
        """The error of the last save where it failed and nobody was told yet; does not wait."""
        return self._error

    def save(
        self,
        step: int,
        leaves: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        best: float | None = None,
        wait: bool = False,
    ) -> None:
        """Begins a save. The arrays may be changed, donated or deleted as soon as this returns.

        Args:
            step: the number of updates done.
            leaves: arrays by name, any text: `jax.Array`s on any devices, PRNG keys too, or what NumPy takes for one.
            facts: JSON.
            best: the value by which the best checkpoint is known: the lowest.
            wait: whether to return only when the checkpoint is there.

        Raises:
            OSError: of the save before, with its path; with `wait` of this one too.
            TypeError: for facts that are no JSON and leaves that are no arrays.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}.")
        self._settle()
        text = json.dumps(dict(facts))
        entries, arrays = array_entries(leaves)
        half = self.directory / f"{_saving(self._run)}step_{step:09d}"
        # of several processes Orbax begins here: it is not to meet the others on the devices in the midst of a step
        copies = None if self._processes.is_multiprocess else copied_on_devices(arrays)
        try:
            self._processes.broadcast_from_primary(lambda: self._make(half))
            write_arrays = _begin(half / _ARRAYS, arrays, copies)
        except Exception as error:
            self._fail(error, half)
        else:
            value = None if best is None else float(best)
            arguments = (half, step, text, entries, value, write_arrays)
            # a daemon: a process that ends without `close` is not kept by it
            self._thread = threading.Thread(target=self._finish, args=arguments, name="jaxcb-save", daemon=True)
            self._thread.start()
        if wait:
            self._settle()

    def latest(self, *, needed: bool = True) -> Saved | None:
        """Returns the newest checkpoint that is whole, every byte of it read; None where there is none at all.

        Args:
            needed: whether nobody can do without one that is there; else it is said, and None is returned.

        Raises:
            ValueError: where there are checkpoints, and none of them is whole.
        """
        self._join()
        return self._processes.broadcast_from_primary(lambda: self._latest(needed))

    def _latest(self, needed: bool) -> Saved | None:
        reasons: dict[Path, UnusableError] = {}
        names = sorted(self._names(), key=_place, reverse=True)
        for name in names:
            path = self.directory / name
            try:
                saved = _manifest.verify(path)
                if not self._owns(saved.run):
                    raise UnusableError(f"it is of another run, {saved.run}")
            except UnusableError as reason:
                if path.exists() and not _manifest.is_going(path):  # or another process, whose run it is, deletes it
                    reasons[path] = reason
                continue
            for other, reason in reasons.items():
                if other.name not in self._unusable:
                    self._unusable[other.name] = reason
                    self._say(f"The checkpoint {other} {_because(reason)}. It is skipped; {path} is used.")
            return saved
        if reasons and not needed:
            for path, reason in reasons.items():
                self._say(f"The checkpoint {path} {_because(reason)}. It is skipped.")
            return None
        if reasons:
            listed = "".join(f"\n  {path} {_because(reason)}" for path, reason in reasons.items())
            raise ValueError(
                f"{self.directory} holds checkpoints, and none of them is whole:{listed}\n"
                "Put them back from a copy, or begin a new run in another directory."
            )
        return self._latest(needed) if names else None

    def load(self, saved: Saved, target: Mapping[str, jax.ShapeDtypeStruct] | None = None) -> dict[str, Any]:
        """Returns arrays by name.

        Args:
            saved: from `latest`.
            target: those wanted, and on which devices: where a `sharding` is given, arrays come back with it; else they
                are tied to no device. None for all. What JAX cannot hold (float64 while it is off) stays NumPy's.

        Raises:
            ValueError: for arrays that are not there, or with another shape or dtype, before any is read.
        """
        if target is not None:
            check(saved, target)
        wanted = [
            (entry, target[entry.name].sharding if target is not None else None)
            for entry in saved.entries
            if target is None or entry.name in target
        ]
        found = restore(saved.path / _ARRAYS, wanted)
        return found if target is None else {name: found[name] for name in target}

    def close(self) -> None:
        """Waits for the save in flight.

        Raises:
            OSError: of that save, with its path.
        """
        try:
            self._settle()
        finally:
            self._unlock()
            self._open = False

    def _make(self, half: Path) -> None:
        """Makes the directory of a save."""
        if not self._open:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clean()
        if half.exists():
            shutil.rmtree(half)
        half.mkdir()  # without parents: a directory that vanished is not made again, as it may be another disk's now

    def _finish(
        self,
        half: Path,
        step: int,
        facts: str,
        entries: tuple[ArrayEntry, ...],
        best: float | None,
        write_arrays: Callable[[], None],
    ) -> None:
        """Makes a checkpoint of a save's directory; a thread."""
        try:
            with _quiet():
                write_arrays()
            if not self._processes.is_primary:
                return
            _manifest.write(half, step=step, facts=facts, entries=entries, best=best)
            path = self.directory / self._free_name(step)
            half.rename(path)
            _manifest.sync_directory(self.directory)
        except Exception as error:
            if self._processes.is_primary:
                shutil.rmtree(half, ignore_errors=True)  # gives its room back
            self._fail(error, half)
            return
        try:
            self._prune(path.name, best)
            self._silent = False
        except Exception as error:
            self._fail(error, self.directory, "delete older checkpoints")

    def _free_name(self, step: int) -> str:
        """A checkpoint of that step may be there; it goes only when the new one is complete."""
        taken = [again for at, again in map(_place, self._names()) if at == step]
        return f"step_{step:09d}" + (f"-{max(taken) + 1}" if taken else "")

    def _prune(self, newest: str, best: float | None) -> None:
        """Deletes what neither is new nor the best, and what is damaged; the newest just came."""
        step = _place(newest)[0]
        self._best[newest] = best
        names = self._names()
        for name in names - self._best.keys() - self._unusable.keys():
            try:
                saved = _manifest.read(self.directory / name)[0]
                if not self._owns(saved.run):
                    raise UnusableError(f"it is of another run, {saved.run}")
                self._best[name] = saved.best
            except UnusableError as reason:
                self._unusable[name] = reason
        # one of the same step is replaced
        good = {name for name in names - self._unusable.keys() if name == newest or _place(name)[0] != step}
        ranked = [(self._best[name], *_place(name), name) for name in good if _is_number(self._best[name])]
        stay = {newest, *sorted(good, key=_place)[-self._keep :], *(min(ranked)[-1:] if ranked else ())}
        for name in names - stay:
            if isinstance(self._unusable.get(name), DamagedError | None):
                self._delete(name)

    def _owns(self, run: str | None) -> bool:
        """Whether a checkpoint of a run is this run's: one of no run is of the time before runs had ids."""
        return run in (None, self._run)

    def _delete(self, name: str) -> None:
        """Deletes a checkpoint so that what is half deleted is none; one that does not say what it is made of stays."""
        path = self.directory / name
        try:
            if not self._owns(_manifest.run_of(path)):
                return
            _manifest.delete(path)
        except UnusableError:
            return
        self._best.pop(name, None)
        self._unusable.pop(name, None)

    def _names(self) -> set[str]:
        try:
            names = {name for name in os.listdir(self.directory) if _CHECKPOINT.fullmatch(name)}
            return {name for name in names if not _manifest.is_going(self.directory / name)}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def _clean(self) -> None:
        """Removes what killed processes of the run left; nothing while another process has the directory open."""
        self._open = True
        descriptor = _lock(self.directory)
        if descriptor is None:
            return
        self._unlock = weakref.finalize(self, os.close, descriptor)
        for name in os.listdir(self.directory):
            if name.startswith(_saving(self._run)):
                shutil.rmtree(self.directory / name, ignore_errors=True)
            elif _CHECKPOINT.fullmatch(name) and _manifest.is_going(self.directory / name):
                with contextlib.suppress(OSError):
                    self._delete(name)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _fail(self, error: Exception, path: Path, what: str = "save the checkpoint") -> None:
        path = path.with_name(path.name.removeprefix(_saving(self._run)))
        number, reason = _cause(error)
        self._error = OSError(number, f"cannot {what}: {reason}", str(path))
        self._error.__cause__ = error

    def _settle(self) -> None:
        """Waits for the save in flight and tells its error."""
        self._join()
        error, self._error = self._error, None
        if error is None:
            return
        if self._on_error == "raise":
            raise error
        if not self._silent:
            self._silent = True
            last = max(self._names() - self._unusable.keys(), key=_place, default=None)
            kept = f"The last one, {self.directory / last}, stays" if last else "There is none yet"
            self._say(f"{error.filename}: {error.strerror}. {kept}; the run goes on, and later saves try again.")


def checkpoints_in(directory: Path) -> list[Path]:
    """What looks like a checkpoint in a directory, whosever and however damaged it is: it has a manifest."""
    names = sorted(name for name in _listed(directory) if _CHECKPOINT.fullmatch(name))
    return [directory / name for name in names if (directory / name / _manifest.NAME).exists()]


def remove_store(directory: Path, run: str | None) -> None:
    """Removes a run's checkpoints in a directory, and what its killed processes left.

    Args:
        directory: it stays, as it may be open, and so does what else is in it.
        run: the run's id; None for a run of the time before runs had ids.
    """
    for name in _listed(directory):
        path = directory / name
        if run is not None and name.startswith(_saving(run)):
            shutil.rmtree(path)
        elif _CHECKPOINT.fullmatch(name):
            try:
                if _manifest.run_of(path) in (None, run):
                    _manifest.delete(path)
            except UnusableError:  # it does not say what it is made of, or whose it is
                continue


def _saving(run: str) -> str:
    """What the names of checkpoints that a run is just saving begin with."""
    return f".saving-{run}-"


def _listed(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.is_dir() else []


def _begin(path: Path, arrays: dict[str, Any], copies: dict[str, Any] | None) -> Callable[[], None]:
    """Returns a function that has Orbax write the arrays as they are now."""
    if copies is not None:
        return lambda: _write(path, copies)
    return _orbax.save_async(str(path), arrays)


def _write(path: Path, arrays: dict[str, Any]) -> None:
    """All of Orbax's own work, off the loop's thread; its import too."""
    if not arrays:
        return  # which Orbax does not store
    _orbax.save(str(path), arrays)


def _place(name: str) -> tuple[int, int]:
    """Step and how many times it was saved before, by which checkpoints are ordered."""
    match = _CHECKPOINT.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def _because(reason: UnusableError) -> str:
    return f"{'is damaged' if isinstance(reason, DamagedError) else 'cannot be used'}: {reason}"


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _cause(error: Exception) -> tuple[int, str]:
    """An error number and its words. TensorStore tells what the system said in the midst of a long text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno, error.strerror or str(error)
    text = str(error)
    for number in _TOLD:
        if os.strerror(number) in text:
            return number, os.strerror(number)
    return errno.EIO, f"{type(error).__name__}: {text.strip()}"


def _lock(directory: Path) -> int | None:
    """Returns an open descriptor of a directory that holds its lock until closed or the process ends, or None."""
    try:
        import fcntl
    except ImportError:  # no such lock on Windows, so leftovers stay
        return None
    descriptor = None
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps a failing save's tracebacks, one for each of Orbax's threads, out of the log: the error itself is told."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "_SignalingThread" not in str(record.msg)

    logger = logging.getLogger("absl")
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
