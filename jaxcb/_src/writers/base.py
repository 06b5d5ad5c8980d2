"""Base class of writers, and the registry of which writer performs which action."""

import errno
import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import jax
import numpy as np

from jaxcb._src.core.actions.base import Action
from jaxcb._src.core.actions.host import Call, Checkpoint, Profile, Summarize
from jaxcb._src.core.actions.logging import (
    JSONLine,
    LogCSV,
    LogHistory,
    LogHTTP,
    LogProgress,
    LogToFunction,
    LogTracker,
    MLflowLog,
    Print,
    TrackioLog,
    WandbLog,
    WriteReport,
)
from jaxcb._src.core.actions.tensorboard import TensorBoardAction
from jaxcb._src.distributed.processes import SINGLE_PROCESS, Processes
from jaxcb._src.storage.failures import WriteFailures, named
from jaxcb._src.storage.ownership import RunRecord
from jaxcb._src.utils.address import Address, parse_address
from jaxcb._src.utils.local_path import check_no_link_out, local_path, working_directory
from jaxcb._src.writers.files import AppendFile
from jaxcb._src.writers.saved_checkpoints import SavedCheckpoints

OF_THE_RUN = ("history.csv", "host_metrics.csv")  # files in each run directory


class Context:
    """The information that writers have about their run.

    Attributes:
        run_dir: the run's directory, or None.
        began_in: the working directory when the run began; a callback may change it later.
        run: the live run, as `Call` functions see it.
        verbose: 0 for no output.
        epochs: the number of epochs of the run, or None.
        steps_per_epoch: steps of an epoch, or None if unknown.
        trial: whether nothing may remain after the run (`fast_dev_run`): files are in a temporary directory, and
            nothing is sent to services.
        files: the files that were written, for the summary at the end of the run.
        record: the run's id and the files that it created.
        resumed_files: file key -> position in the file at the checkpoint from which the run resumes.
        inherits: whether that checkpoint was written by a version without run ids; then the files that it names
            belong to the run.
        checkpoint: the checkpoint from which the run resumes, or None.
        complete: whether the run is complete, so that its result is returned and nothing is written.
        bucket: the address that the run's directory is copied to, or None.
        failure: the error that ended the run, for writers that are being closed; None if there was none.
        failures: what to do when a file cannot be written.
        saved: the checkpoints that are complete, and the functions that are told of them.
        processes: the processes of the run. Only the primary process writes and prints.
    """

    def __init__(
        self,
        run_dir: Path | None,
        run: Any,
        verbose: Literal[0, 1, 2] | None,
        epochs: int | None,
        *,
        trial: bool = False,
        processes: Processes = SINGLE_PROCESS,
        on_error: Literal["raise", "warn"] = "raise",
    ) -> None:
        self.run_dir = run_dir
        self.failures = WriteFailures(on_error, self.warn)
        self.began_in = working_directory()
        self.run = run
        self.verbose = verbose
        self.epochs = epochs
        self.trial = trial
        self.processes = processes
        self.steps_per_epoch: int | None = None
        self.files: list[Path] = []
        self.record = RunRecord()
        self.saved = SavedCheckpoints()
        self.resumed_files: dict[str, Any] = {}
        self.inherits = self.complete = False
        self.checkpoint: Path | None = None
        self.bucket: Address | None = None
        self._appended: dict[str, AppendFile] = {}
        self.failure: BaseException | None = None
        self._owners: dict[Path, str] = {}
        self._paths: set[Path] = set()  # that were checked
        self._began_as: os.stat_result | None = None  # the run's directory

    def locate(self, bucket: Address | None) -> None:
        """Sets the address that the run's directory is copied to, before the first path is asked."""
        self.bucket = bucket

    def describe_data(self, steps_per_epoch: int | None) -> None:
        """Sets the steps of an epoch, before the first writer is made."""
        self.steps_per_epoch = steps_per_epoch

    def start_from(
        self,
        record: RunRecord,
        positions: dict[str, Any],
        *,
        inherits: bool,
        complete: bool = False,
        saved_in: Any = None,
    ) -> None:
        """Sets the run's id and files, and the positions in files at the checkpoint from which it resumes."""
        self.checkpoint = saved_in
        self._began_as = self.run_dir.stat() if self.run_dir is not None and self.run_dir.is_dir() else None
        self.record, self.resumed_files, self.inherits, self.complete = record, positions, inherits, complete

    def fail(self, error: BaseException | None) -> None:
        """Sets the error that ended the run, before the writers are closed."""
        self.failure = error

    def path(self, name: str, *, owner: str = "") -> Path:
        """Returns the path of a file: relative names are below `run_dir`, or the initial working directory.

        An address below that of the run is a name below `run_dir`.

        Args:
            name: the path.
            owner: the callback that asks, for the error.

        Raises:
            TypeError: if `name` is not a path.
            ValueError: if it is an address that is not below the run's, empty, or leads out of `run_dir` by a link.
        """
        owner, base = owner or "Context.path", self.began_in if self.run_dir is None else self.run_dir
        address = parse_address(owner, "name", name)
        if address is not None:
            below = None if self.bucket is None else address.below(self.bucket)
            if not below or self.run_dir is None:
                raise ValueError(
                    f"{owner}: {address} is not below the run_dir, which is {self.bucket or self.run_dir}. Pass a "
                    f"relative path, which is below run_dir, or a run_dir above it, such as '{address.parent}'."
                )
            return self._checked(self.run_dir / below)
        path = local_path(owner, "name", name, below=base)
        if self.trial and self.run_dir is not None:
            path = Path(os.path.normpath(path))  # so that a `..` does not leave the directory
            if not path.is_relative_to(self.run_dir):
                return self.run_dir / path.relative_to(path.anchor)
        return self._checked(path)

    def _checked(self, path: Path) -> Path:
        """Returns a path, after checking at its first use that no link leads it out of the run's directory."""
        if self.run_dir is not None and path not in self._paths:
            check_no_link_out(self.run_dir, path)
            self._paths.add(path)
        return path

    def check_directory(self) -> None:
        """Checks that the run's directory is still there, before a file is made in it: it is not made again.

        Raises:
            FileNotFoundError: if it was removed, moved or replaced.
        """
        if self.run_dir is None:
            return
        if not self.run_dir.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the directory of the run was removed or moved", str(self.run_dir))
        if self._began_as is not None and not os.path.samestat(self.run_dir.stat(), self._began_as):
            shown = "the directory of the run was moved, and another one is in its place"
            raise FileNotFoundError(errno.ENOENT, shown, str(self.run_dir))

    def claim(self, path: Path, owner: str) -> None:
        """Registers a file of the run and its owner.

        Raises:
            ValueError: if it has another owner.
        """
        known = self._owners.setdefault(path.resolve(), owner)
        if known != owner:
            raise ValueError(f"{known} and {owner} both write {path}; give one of them another filename.")
        if path not in self.files:
            self.files.append(path)

    def append_file(self, path: Path, what: str, *, append: bool = False) -> AppendFile:
        """Returns a file to append to, whose position is part of checkpoints; in a resumed run it is truncated to it.

        A file in the run's directory that a new run replaces belongs to the run alone. Other files may be shared: only
        text that is recorded as written by the run is ever removed from them.

        Args:
            path: the file.
            what: description of the file, for errors.
            append: whether a new run keeps the existing content.

        Returns:
            The file.

        Raises:
            FileExistsError: if a file of unknown origin in the run's directory would be replaced.
            ValueError: if the run's own lines cannot be removed from a shared file.
        """
        key = self.key(path)
        alone = not append and self.run_dir is not None and path.resolve().is_relative_to(self.run_dir.resolve())
        is_own = key in self.record.made or key in self.resumed_files
        if alone and not is_own and path.is_file() and path.stat().st_size:
            raise FileExistsError(
                f"{path} is in the way: the run would replace it, and no record in {self.run_dir} shows that it is the "
                "run's. Move it, or give another filename."
            )
        file = AppendFile(
            path, what, append=append, record=self.record, key=key, shared=not alone, failures=self.failures
        )
        if key in self.resumed_files:
            self._restore(file, self.resumed_files[key], of_the_run=path.name == key and key in OF_THE_RUN)
        self._appended[key] = file
        return file

    def _restore(self, file: AppendFile, position: Any, *, of_the_run: bool) -> None:
        """Restores a file to its position. That of a callback is not needed to return the result of a complete run."""
        if not self.complete or of_the_run:
            file.restore(position)
            return
        file.only_compare()
        try:
            file.restore(position, cut=False)
        except ValueError as error:
            self.warn(f"{error} The result of the run is returned all the same.")

    def file_positions(self) -> dict[str, Any]:
        """Makes the content of all appended files durable, and returns their positions, as JSON."""
        return {key: file.position() for key, file in self._appended.items()}

    def record_position(self) -> list[int]:
        """Returns the position of the run's record, as JSON."""
        path = self.record.path
        if path is not None:
            with self.failures.handled(path, "No later checkpoint is complete."), named("the record of the run", path):
                return self.record.position()
        return self.record.position(read=False)

    def key(self, path: Path) -> str:
        """Returns a name of the file that stays the same when the run's directory is moved."""
        path = path.resolve()
        if self.run_dir is not None and path.is_relative_to(self.run_dir.resolve()):
            return path.relative_to(self.run_dir.resolve()).as_posix()
        return path.as_posix()

    def say(self, text: str) -> None:
        """Prints a line, unless the run is silent."""
        if self.verbose != 0 and self.processes.is_primary:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Warns about a problem that does not stop the run, even in a silent run."""
        if self.processes.is_primary:
            warnings.warn(f"jaxcb: {text}", RuntimeWarning, stacklevel=2)


class Writer:
    """Base class of writers; one instance serves all actions of its kinds in a run.

    Attributes:
        everywhere: whether every process of a run has one; otherwise only process 0 does.
    """

    everywhere: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        self.context = context

    def prepare(self, action: Any) -> None:
        """Called with each action of the run before the first step, with shapes instead of arrays; may raise errors."""

    def warm_up(self) -> None:
        """Called while the steps compile in the background: imports what the first record or tick would import."""

    def write(self, record: Any) -> None:
        """Performs one record."""
        raise NotImplementedError

    def position(self) -> Any:
        """Makes the output durable and returns its position, as JSON; not needed for files of `append_file`."""
        return None

    def restore(self, position: Any) -> None:
        """Restores the output to a checkpoint's position; called in a resumed run before the first record."""

    def flush(self) -> None:
        """Called after the records of a dispatch were written."""

    def tick(self, status: Any) -> None:
        """Called with the run's status after each dispatch, a few times per second."""

    def close(self) -> None:
        """Makes all output durable."""


def by_member(action: Any) -> Iterator[tuple[int | None, Any]]:
    """Splits an action by member: yields the number of each member for which it fires and the member's action.

    An action of a single run is yielded unchanged, with None as the number.
    """
    if np.ndim(action.when) == 0:
        yield None, action
        return
    for member in np.flatnonzero(action.when):
        yield int(member), jax.tree.map(lambda x, m=member: x[m], action)


W = TypeVar("W", bound=type[Writer])

# Built-in writers by name, so that their imports are loaded only when they are used.
_BUILT_IN = {
    LogCSV: "jaxcb._src.writers.csv:CSVWriter",
    LogHistory: "jaxcb._src.writers.history:HistoryWriter",
    LogToFunction: "jaxcb._src.writers.scalars:HandOverWriter",
    JSONLine: "jaxcb._src.writers.scalars:JSONLinesWriter",
    LogHTTP: "jaxcb._src.writers.trackers.http:PostWriter",
    LogTracker: "jaxcb._src.writers.trackers.writer:CustomTrackerWriter",
    WandbLog: "jaxcb._src.writers.trackers.wandb:WandbWriter",
    MLflowLog: "jaxcb._src.writers.trackers.mlflow:MLflowWriter",
    TrackioLog: "jaxcb._src.writers.trackers.trackio:TrackioWriter",
    # it reads and replays the run, so it stands above the loop
    WriteReport: "jaxcb._src.report.writer:ReportWriter",
    LogProgress: "jaxcb._src.writers.progress:ProgressWriter",
    Print: "jaxcb._src.writers.progress:ProgressWriter",
    TensorBoardAction: "jaxcb._src.writers.tensorboard.writer:TensorBoardWriter",
    Call: "jaxcb._src.writers.host:CallWriter",
    Checkpoint: "jaxcb._src.writers.orbax:CheckpointWriter",
    Summarize: "jaxcb._src.writers.host:SummaryWriter",
    Profile: "jaxcb._src.writers.host:ProfileWriter",
}
_OWN: dict[type[Action], type[Writer]] = {}


def writer(*actions: type[Action]) -> Callable[[W], W]:
    """Registers a class as the writer of one or more kinds of action.

    Args:
        *actions: action classes.

    Returns:
        A decorator that returns the class unchanged.

    Example:
        >>> import jaxcb as jc
        >>> class Beep(jc.actions.LogAction):
        ...     times: int = jc.static(default=1)
        >>> @jc.writers.writer(Beep)
        ... class Beeper(jc.writers.Writer):
        ...     def write(self, record):
        ...         print("beep " * record.action.times)
        >>> jc.writers.writer_for(Beep) is Beeper
        True
    """
    if not actions:
        raise TypeError("writer got no actions: @jc.writers.writer(MyAction).")
    for action in actions:
        if not (isinstance(action, type) and issubclass(action, Action)):
            raise TypeError(f"writer: actions must be classes of actions, got {action!r}.")

    def register(cls: W) -> W:
        _OWN.update(dict.fromkeys(actions, cls))
        return cls

    return register


def writer_for(action: type[Action]) -> type[Writer]:
    """Returns the writer of a kind of action.

    Raises:
        LookupError: if no writer is registered.
    """
    if not isinstance(action, type):
        raise TypeError(f"writer_for: action must be a class of actions, got {action!r}.")
    for kind in action.__mro__:
        if kind in _OWN:
            return _OWN[kind]
        if kind in _BUILT_IN:
            module, name = _BUILT_IN[kind].split(":")
            return getattr(importlib.import_module(module), name)
    raise LookupError(
        f"no writer performs the action {action.__name__}. Register one: @jc.writers.writer({action.__name__})."
    )
