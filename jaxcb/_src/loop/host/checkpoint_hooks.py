"""`CheckpointHooks`: checkpoints a run while no dispatch is pending."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxcb._src.checkpointing.checkpointer import Checkpointer


class CheckpointHooks:
    """Checkpoints a run while no dispatch is pending.

    Args:
        keeper: writes the checkpoints; None where the run is not saved.
        leaves: returns the loop state to save, by name.
        facts: returns what the host knows of the run, as JSON; all that was logged so far is durable when it returns.
    """

    def __init__(
        self,
        keeper: Checkpointer | None,
        leaves: Callable[[], Mapping[str, Any]],
        facts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.checkpointer, self._leaves, self._facts = keeper, leaves, facts
        self.consistent = True  # whether no moment is half done: only then a run that failed is saved

    @contextlib.contextmanager
    def inconsistent(self) -> Iterator[None]:
        """A moment that is whole only when the host has done its part: one that fails has to come again."""
        before, self.consistent = self.consistent, False
        yield
        self.consistent = before

    @property
    def due(self) -> bool:
        """Whether the run is to be saved."""
        return self.checkpointer is not None and self.checkpointer.due

    def request_save(self) -> None:
        """Asks for a save at the next place where nothing is under way."""
        if self.checkpointer is not None:
            self.checkpointer.request_save()

    def save(self, *, wait: bool = False) -> None:
        """Saves the training; nothing may be under way."""
        if self.checkpointer is not None:
            self.checkpointer.save(self._leaves(), self._facts(), wait=wait)

    def save_result(self) -> None:
        """Saves what the run has come to, after `on_train_end`."""
        if self.checkpointer is not None:
            self.checkpointer.save_result(self._leaves(), self._facts())
