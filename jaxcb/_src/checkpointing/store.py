"""Storage of checkpoints: named arrays and JSON metadata.

Orbax writes the arrays. This module decides when a checkpoint is complete, which ones are kept, and how errors are
handled.
"""

import contextlib
import errno
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxcb._src.checkpointing import manifest as _manifest
from jaxcb._src.checkpointing.arrays import array_entries, check, copied_on_devices, restore
from jaxcb._src.checkpointing.layout import CHECKPOINT, checkpoint_place, listed
from jaxcb._src.checkpointing.manifest import ArrayEntry, DamagedError, Saved, UnusableError
from jaxcb._src.distributed.processes import SINGLE_PROCESS, Processes
from jaxcb._src.storage import orbax as _orbax
from jaxcb._src.storage.failures import check_room, system_error
from jaxcb._src.storage.schema import Form, anything
from jaxcb._src.utils.platforms import sync_directory, try_lock

_NO_RUN = "0" * 16  # default id
_ARRAYS = "arrays"  # directory of Orbax in each checkpoint


class Store:
    """Keeps the checkpoints of a run in a directory. A thread writes one checkpoint at a time.

    Other files in the directory are not touched: a checkpoint is deleted by the files that its manifest names, and
    leftovers of a killed process have the run's id in their name.

    Close it in any case (`contextlib.closing`): a process that ends without it loses the pending write.

    With several processes, each writes its own shards of the arrays, and process 0 does everything else. All processes
    call `save`, `latest` and `load` together.

    Args:
        directory: for checkpoints only; created by the first save, in an existing directory.
        keep: number of newest checkpoints to keep.
        say: prints a line.
        on_error: "raise", or "warn" to print the error and continue with the existing checkpoints.
        processes: of the run.
        run: id of the run. Checkpoints of other runs are ignored.
        form: of the metadata; a checkpoint with others is damaged.
        check: called before each save; raises an `OSError` if nothing may be written to the directory.

    Raises:
        ValueError: for invalid arguments.
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
        form: Form = anything,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._form, self._check = form, check
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}.")
        if on_error not in ("raise", "warn"):
            raise ValueError(f"on_error must be 'raise' or 'warn', got {on_error!r}.")
        self.directory = Path(directory).absolute()  # Orbax needs absolute paths
        self._run, self._keep, self._say, self._on_error = run, keep, say, on_error
        self._processes = processes
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._error_reported = False  # whether the current error was already printed
        self._usable: set[str] = set()  # checkpoints of this run with a readable manifest
        self._unusable: dict[str, UnusableError] = {}
        self._unlock: Callable[[], Any] = lambda: None
        self._open = False
        self._listeners: list[tuple[Callable[[Path, dict[str, Any]], Any], str]] = []
        if processes.is_primary and self.directory.is_dir():
            self._clean()

    def call_on_complete(self, function: Callable[[Path, dict[str, Any]], Any], what: str) -> None:
        """Has a function called with each new checkpoint and its facts, in the thread that wrote it.

        Args:
            function: called with the path and the facts, as the checkpoint has them.
            what: what it does, for the message of an error: "prepare the upload of the checkpoint".
        """
        self._listeners.append((function, what))

    def save(
        self,
        step: int,
        leaves: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        wait: bool = False,
    ) -> None:
        """Begins to write a checkpoint. The arrays may be modified, donated or deleted as soon as this returns.

        Args:
            step: updates done.
            leaves: name -> array: `jax.Array`s on any devices, PRNG keys, or anything that numpy can convert.
            facts: JSON metadata.
            wait: whether to wait until the checkpoint is complete.

        Raises:
            OSError: if the previous save failed; with `wait` also if this one failed.
            TypeError: for metadata that is not JSON, or a leaf that is not an array.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}.")
        self._wait_and_report()
        text = json.dumps(dict(facts))
        entries, arrays = array_entries(leaves)
        partial = self.directory / f"{_partial_prefix(self._run)}step_{step:09d}"
        # With several processes Orbax begins in this thread: it communicates over the devices, and must not do so in
        # the middle of a step.
        copies = None if self._processes.is_multiprocess else copied_on_devices(arrays)
        try:
            self._processes.broadcast_from_primary(lambda: self._make(partial))
            write_arrays = _begin(partial / _ARRAYS, arrays, copies)
        except Exception as error:
            self._fail(error, partial)
        else:
            arguments = (partial, step, text, entries, write_arrays)
            # a daemon, so that it does not keep a process alive that ends without `close`
            self._thread = threading.Thread(target=self._finish, args=arguments, name="jaxcb-save", daemon=True)
            self._thread.start()
        if wait:
            self._wait_and_report()

    def latest(self, *, needed: bool = True) -> Saved | None:
        """Returns the newest complete checkpoint of the run, after reading every byte; None if there is none."""
        self._join()
        return self._processes.broadcast_from_primary(lambda: self._latest(needed))

    def _latest(self, needed: bool, tries: int = 10) -> Saved | None:
        """Finds the newest complete checkpoint. Runs on process 0."""
        reasons: dict[Path, UnusableError] = {}
        names = sorted(self._names(), key=checkpoint_place, reverse=True)
        for name in names:
            path = self.directory / name
            try:
                saved = _manifest.verify(path, self._form)
                if not self._owns(saved.run):
                    raise UnusableError(f"it is of another run, {saved.run}")
            except UnusableError as reason:
                # otherwise another process of the same run is deleting it
                if (path.exists() or path.is_symlink()) and not _manifest.is_being_deleted(path):
                    reasons[path] = reason
                continue
            for other, reason in reasons.items():
                if other.name not in self._unusable:
                    self._unusable[other.name] = reason
                    self._say(f"The checkpoint {other} {_explain(reason)}. It is skipped; {path} is used.")
            return saved
        if reasons and not needed:
            for path, reason in reasons.items():
                self._say(f"The checkpoint {path} {_explain(reason)}. It is skipped.")
            return None
        if reasons:
            listed = "".join(f"\n  {path} {_explain(reason)}" for path, reason in reasons.items())
            raise ValueError(
                f"{self.directory} holds checkpoints, but none of them is complete:{listed}\n"
                "Restore them from a backup, or start a new run in another directory."
            )
        # All of them vanished while they were read, so another process has replaced them: look again.
        return self._latest(needed, tries - 1) if names and tries else None

    def load(self, saved: Saved, target: Mapping[str, jax.ShapeDtypeStruct] | None = None) -> dict[str, Any]:
        """Returns arrays by name.

        Args:
            saved: from `latest`.
            target: name -> shape and dtype of the requested arrays; with a `sharding`, the array is placed by it,
                otherwise it is not committed to a device. None for all arrays. Dtypes that are disabled in JAX (such as
                float64) are returned as numpy arrays.

        Raises:
            ValueError: for arrays that are missing or have another shape or dtype, before any is read.
        """
        if target is not None:
            check(saved, target)
        wanted = [
            (entry, target[entry.name].sharding if target is not None else None)
            for entry in saved.entries
            if target is None or entry.name in target
        ]
        try:
            found = restore(saved.path / _ARRAYS, wanted)
        except Exception as error:  # of Orbax or TensorStore, for arrays that are not those of the manifest
            raise ValueError(
                f"The checkpoint {saved.path} cannot be loaded ({type(error).__name__}: {f'{error}':.300}). Restore it "
                "from a backup, or remove it, so that the one before is used."
            ) from error
        return found if target is None else {name: found[name] for name in target}

    def newest(self) -> Path | None:
        """Returns the path of the newest checkpoint, without reading it; None if there is none."""
        name = max(self._names() - self._unusable.keys(), key=checkpoint_place, default=None)
        return None if name is None else self.directory / name

    def close(self) -> None:
        """Waits for the pending write.

        Raises:
            OSError: if it failed.
        """
        try:
            self._wait_and_report()
        finally:
            self._unlock()
            self._open = False

    def _make(self, partial: Path) -> None:
        """Creates the directory of a checkpoint."""
        self._check()
        if not self._open:
            self.directory.mkdir(exist_ok=True)  # without parents: a run directory that vanished is not made again
            self._clean()
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir()  # without parents: if the directory has vanished, its path may now be on another disk
        check_room(partial)

    def _finish(
        self,
        partial: Path,
        step: int,
        facts: str,
        entries: tuple[ArrayEntry, ...],
        write_arrays: Callable[[], None],
    ) -> None:
        """Writes a checkpoint and renames it to its final name. Runs in a thread."""
        try:
            if self._processes.is_primary and not partial.is_dir():  # Orbax would make it again, with its parents
                raise FileNotFoundError(errno.ENOENT, "its directory was removed or moved", str(partial))
            write_arrays()
            if not self._processes.is_primary:
                return
            unreadable = _orbax.parts_without_index(partial / _ARRAYS)
            if unreadable:  # the bytes of the arrays are there, and cannot be found
                raise OSError(errno.EIO, f"Orbax wrote no index of the arrays in {unreadable[0].name}")
            _manifest.write(partial, step=step, facts=facts, entries=entries)
            path = self.directory / self._free_name(step)
            partial.rename(path)
            sync_directory(self.directory)
        except Exception as error:
            if self._processes.is_primary:
                shutil.rmtree(partial, ignore_errors=True)  # frees its disk space
            self._fail(error, partial)
            return
        try:
            self._prune(path.name)
            self._error_reported = False
        except Exception as error:
            self._fail(error, self.directory, "delete older checkpoints")
        for function, what in self._listeners:
            try:
                function(path, json.loads(facts))
            except Exception as error:
                self._fail(error, path, what)

    def _free_name(self, step: int) -> str:
        """Returns a name for a checkpoint of this step. An existing one is kept until the new one is complete."""
        taken = [again for at, again in map(checkpoint_place, self._names()) if at == step]
        return f"step_{step:09d}" + (f"-{max(taken) + 1}" if taken else "")

    def _prune(self, newest: str) -> None:
        """Deletes all checkpoints except the newest ones. Damaged ones do not count as new."""
        step = checkpoint_place(newest)[0]
        self._usable.add(newest)
        names = self._names()
        for name in names - self._usable - self._unusable.keys():
            try:
                saved = _manifest.read(self.directory / name)[0]
                if not self._owns(saved.run):
                    raise UnusableError(f"it is of another run, {saved.run}")
                self._usable.add(name)
            except UnusableError as reason:
                self._unusable[name] = reason
        # another checkpoint of the same step is replaced
        good = {name for name in names - self._unusable.keys() if name == newest or checkpoint_place(name)[0] != step}
        stay = {newest, *sorted(good, key=checkpoint_place)[-self._keep :]}
        for name in names - stay:
            if isinstance(self._unusable.get(name), DamagedError | None):
                self._delete(name)

    def _owns(self, run: str | None) -> bool:
        """Returns whether a checkpoint belongs to this run. One without an id was written before runs had ids."""
        return run in (None, self._run)

    def _delete(self, name: str) -> None:
        """Deletes a checkpoint. One without a readable manifest is kept."""
        path = self.directory / name
        try:
            if not self._owns(_manifest.run_of(path)):
                return
            _manifest.delete(path)
        except UnusableError:
            return
        self._usable.discard(name)
        self._unusable.pop(name, None)

    def _names(self) -> set[str]:
        try:
            names = {name for name in os.listdir(self.directory) if CHECKPOINT.fullmatch(name)}
            return {name for name in names if not _manifest.is_being_deleted(self.directory / name)}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def _clean(self) -> None:
        """Removes leftovers of killed processes of the run, unless another process has the directory open."""
        self._open = True
        try:
            descriptor = try_lock(self.directory)
        except OSError:
            return
        if descriptor is None:  # without locks, leftovers are kept: they may be another process's
            return
        self._unlock = weakref.finalize(self, os.close, descriptor)
        for name in os.listdir(self.directory):
            if name.startswith(_partial_prefix(self._run)):
                shutil.rmtree(self.directory / name, ignore_errors=True)
            elif CHECKPOINT.fullmatch(name) and _manifest.is_being_deleted(self.directory / name):
                with contextlib.suppress(OSError):
                    self._delete(name)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _fail(self, error: Exception, path: Path, what: str = "save the checkpoint") -> None:
        path = path.with_name(path.name.removeprefix(_partial_prefix(self._run)))
        found = system_error(error) or OSError(errno.EIO, f"{type(error).__name__}: {str(error).strip()}")
        self._error = OSError(found.errno, f"cannot {what}: {found.strerror}", str(path))
        self._error.__cause__ = error

    def _wait_and_report(self) -> None:
        """Waits for the pending write and reports its error."""
        self._join()
        error, self._error = self._error, None
        if error is None:
            return
        if self._on_error == "raise":
            raise error
        if not self._error_reported:
            self._error_reported = True
            last = self.newest()
            kept = f"The last one, {last}, is kept" if last else "There is none yet"
            self._say(f"{error.filename}: {error.strerror}. {kept}; the run continues, and later saves try again.")


def remove_store(directory: Path, run: str | None) -> None:
    """Removes the checkpoints of a run, and the leftovers of its killed processes.

    Args:
        directory: it is kept, as it may be open, and so are other files in it.
        run: id of the run; None for a run that began before runs had ids.
    """
    for name in listed(directory):
        path = directory / name
        if run is not None and name.startswith(_partial_prefix(run)):
            shutil.rmtree(path)
        elif CHECKPOINT.fullmatch(name):
            try:
                if _manifest.run_of(path) in (None, run):
                    _manifest.delete(path)
            except UnusableError:  # its files or its run are unknown
                continue


def _partial_prefix(run: str) -> str:
    """Returns the prefix of the names of incomplete checkpoints of a run."""
    return f".saving-{run}-"


def _begin(path: Path, arrays: dict[str, Any], copies: dict[str, Any] | None) -> Callable[[], None]:
    """Returns a function that writes the arrays in their current state."""
    if copies is not None:
        return lambda: _write(path, copies)
    return _orbax.save_async(str(path), arrays)


def _write(path: Path, arrays: dict[str, Any]) -> None:
    """Runs Orbax outside of the main thread, including its import."""
    if not arrays:
        return  # Orbax cannot store an empty tree
    _orbax.save(str(path), arrays)


def _explain(reason: UnusableError) -> str:
    return f"{'is damaged' if isinstance(reason, DamagedError) else 'cannot be used'}: {reason}"
