"""`SavedCheckpoints`: tells callbacks that a checkpoint is complete."""

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple


class CheckpointSaved(NamedTuple):
    """A checkpoint that is complete on the disk.

    It stays there while the function that receives this runs. Later it may be deleted: a run keeps its two newest
    checkpoints, and `ModelCheckpoint` those that it was asked to keep.

    Attributes:
        path: its directory.
        step: updates done.
        epoch: index of the epoch, from 0.
        kind: "run" for a checkpoint from which the run resumes, "export" for one of `ModelCheckpoint` or of the action
            `Checkpoint`.
        owner: the callback that saved it; empty for "run".
    """

    path: Path
    step: int
    epoch: int
    kind: Literal["run", "export"]
    owner: str = ""


class SavedCheckpoints:
    """Passes complete checkpoints to the functions that ask for them.

    Saves end in a thread. The functions are called on the run's thread, between two dispatches.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[CheckpointSaved, Callable[[CheckpointSaved], Any] | None]] = deque()
        self._listeners: list[tuple[str, Callable[[Any, CheckpointSaved], Any]]] = []

    def listen(self, owner: str, function: Callable[[Any, CheckpointSaved], Any]) -> None:
        """Adds a function of the run and a checkpoint, which is called for each checkpoint.

        Args:
            owner: name of its callback.
            function: the function.
        """
        self._listeners.append((owner, function))

    def add(self, saved: CheckpointSaved, function: Callable[[CheckpointSaved], Any] | None = None) -> None:
        """Adds a checkpoint. May be called from any thread.

        Args:
            saved: the checkpoint.
            function: the function of its own action, which is called first; None for no function.
        """
        if function is not None or self._listeners:
            self._waiting.append((saved, function))

    def __bool__(self) -> bool:
        """Returns whether a function has to be called."""
        return bool(self._waiting)

    def deliver(self, run: Any) -> None:
        """Calls the functions, in the order of the checkpoints.

        Args:
            run: the live run.

        Raises:
            Exception: that a function raised, with a note on its callback and the checkpoint.
        """
        while self._waiting:
            saved, function = self._waiting.popleft()
            calls = [] if function is None else [(saved.owner, lambda _, s, fn=function: fn(s))]
            for owner, call in [*calls, *self._listeners]:
                try:
                    call(run, saved)
                except Exception as error:
                    error.add_note(f"This happened in {owner}, for the checkpoint {saved.path}.")
                    raise
