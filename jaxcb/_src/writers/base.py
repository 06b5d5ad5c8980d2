"""Which writer performs which action."""

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
    MLflowLog,
    Print,
    WandbLog,
)
from jaxcb._src.core.actions.tensorboard import TensorBoardAction
from jaxcb._src.distributed.processes import SINGLE_PROCESS, Processes
from jaxcb._src.storage.ownership import RunRecord
from jaxcb._src.utils.local_path import local_path, working_directory
from jaxcb._src.writers.files import AppendFile


class Context:
    """What a writer knows of its run.

    Attributes:
        run_dir: the run's directory, or None.
        began_in: the working directory when the run began; a callback may change it later.
        run: the live run, as `Call` functions see it.
        verbose: 0 for silence.
        epochs: how many epochs the run is for, or None.
        steps_per_epoch: steps of an epoch, or None where not known.
        trial: whether nothing may stay behind (`fast_dev_run`): files lie in a directory that goes, and services
            are not told.
        files: what was written, for the run's last word.
        record: the run's id and what it has made.
        resumed_files: where each file stood when the run was saved that is resumed: its key -> place.
        inherits: whether the checkpoint that is resumed from is of a time when runs had no ids: files that it names
            are the run's.
        failure: what ended the run, where it failed; for writers that are being closed.
        processes: of the run. Only the first one writes and speaks.
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
    ) -> None:
        self.run_dir = run_dir
        self.began_in = working_directory()
        self.run = run
        self.verbose = verbose
        self.epochs = epochs
        self.trial = trial
        self.processes = processes
        self.steps_per_epoch: int | None = None
        self.files: list[Path] = []
        self.record = RunRecord()
        self.resumed_files: dict[str, Any] = {}
        self.inherits = False
        self._appended: dict[str, AppendFile] = {}
        self.failure: BaseException | None = None
        self._owners: dict[Path, str] = {}

    def path(self, name: str) -> Path:
        """Returns where a file lies: relative names below `run_dir`, or the working directory that the run began in.

        Raises:
            TypeError: for what is no path.
            ValueError: for an address and an empty name.
        """
        path = local_path("Context.path", "name", name, below=self.began_in if self.run_dir is None else self.run_dir)
        if self.trial and self.run_dir is not None:
            path = Path(os.path.normpath(path))  # a `..` leads nowhere else
            if not path.is_relative_to(self.run_dir):
                return self.run_dir / path.relative_to(path.anchor)
        return path

    def claim(self, path: Path, owner: str) -> None:
        """Notes a file of the run and who writes it.

        Raises:
            ValueError: where somebody else does.
        """
        known = self._owners.setdefault(path.resolve(), owner)
        if known != owner:
            raise ValueError(f"{known} and {owner} both write {path}; give one of them another filename.")
        if path not in self.files:
            self.files.append(path)

    def append_file(self, path: Path, what: str, *, append: bool = False) -> AppendFile:
        """Returns a file that grows, and takes part in what is saved of the run; a resumed one is cut back.

        A file in the run's directory that a new run replaces is the run's alone. Others may be shared: only what the
        run is known to have written itself is ever cut from them.

        Args:
            path: the file.
            what: it is, for errors.
            append: whether what is there stays when a new run begins.

        Raises:
            ValueError: for a shared file from which the run's own lines cannot be cut.
        """
        key = self.key(path)
        alone = not append and self.run_dir is not None and path.resolve().is_relative_to(self.run_dir.resolve())
        file = AppendFile(path, what, append=append, record=self.record, key=key, shared=not alone)
        if key in self.resumed_files:
            file.restore(self.resumed_files[key])
        self._appended[key] = file
        return file

    def file_positions(self) -> dict[str, Any]:
        """Makes durable what was written to the files that grow, and returns where each stands, as JSON."""
        return {key: file.position() for key, file in self._appended.items()}

    def key(self, path: Path) -> str:
        """A file's name that stays when the run's directory moves."""
        path = path.resolve()
        if self.run_dir is not None and path.is_relative_to(self.run_dir.resolve()):
            return path.relative_to(self.run_dir.resolve()).as_posix()
        return path.as_posix()

    def say(self, text: str) -> None:
        """Prints a line, unless the run is silent."""
        if self.verbose != 0 and self.processes.is_primary:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """Warns of what the run goes on without; a silent run warns, too."""
        if self.processes.is_primary:
            warnings.warn(f"jaxcb: {text}", RuntimeWarning, stacklevel=2)


class Writer:
    """Base of writers; one instance serves all actions of its kinds in a run.

    Attributes:
        everywhere: whether each process of a run has one; of the others only process 0 does.
    """

    everywhere: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        self.context = context

    def prepare(self, action: Any) -> None:
        """Sees each action of the run before the first step, shapes in place of arrays; refuses what cannot be."""

    def write(self, record: Any) -> None:
        """Performs one record."""
        raise NotImplementedError

    def position(self) -> Any:
        """Makes durable what was written, and returns where it stands, as JSON; files of `append_file` do so anyway."""
        return None

    def restore(self, position: Any) -> None:
        """Goes back to where it stood when the run was saved that is resumed; called before the first record."""

    def tick(self, status: Any) -> None:
        """Hears where the run stands, a few times a second."""

    def close(self) -> None:
        """Makes everything durable."""


def by_member(action: Any) -> Iterator[tuple[int | None, Any]]:
    """Takes an action apart: the number of each member for which it fires and its own action.

    A single run's is given as it is, with None for the number.
    """
    if np.ndim(action.when) == 0:
        yield None, action
        return
    for member in np.flatnonzero(action.when):
        yield int(member), jax.tree.map(lambda x, m=member: x[m], action)


W = TypeVar("W", bound=type[Writer])

# built-in ones by name, so that what they import loads when it is used
_BUILT_IN = {
    LogCSV: "jaxcb._src.writers.csv:CSVWriter",
    LogHistory: "jaxcb._src.writers.history:HistoryWriter",
    LogToFunction: "jaxcb._src.writers.scalars:HandOverWriter",
    JSONLine: "jaxcb._src.writers.scalars:JSONLinesWriter",
    LogHTTP: "jaxcb._src.writers.http:PostWriter",
    WandbLog: "jaxcb._src.writers.scalars:WandbWriter",
    MLflowLog: "jaxcb._src.writers.mlflow:MLflowWriter",
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
        A decorator that gives the class back.

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
    for action in actions:
        if not (isinstance(action, type) and issubclass(action, Action)):
            raise TypeError(f"writer takes action classes, got {action!r}.")

    def register(cls: W) -> W:
        _OWN.update(dict.fromkeys(actions, cls))
        return cls

    return register


def writer_for(action: type[Action]) -> type[Writer]:
    """Returns the writer of a kind of action.

    Raises:
        LookupError: where nobody performs it.
    """
    for kind in action.__mro__:
        if kind in _OWN:
            return _OWN[kind]
        if kind in _BUILT_IN:
            module, name = _BUILT_IN[kind].split(":")
            return getattr(importlib.import_module(module), name)
    raise LookupError(
        f"nothing performs the action {action.__name__}. Register a writer for it: "
        f"@jc.writers.writer({action.__name__})."
    )
