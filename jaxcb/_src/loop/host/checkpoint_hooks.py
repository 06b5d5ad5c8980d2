"""`CheckpointHooks`: checkpoints a run while no dispatch is pending."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxcb._src.checkpointing.checkpointer import Checkpointer


class CheckpointHooks:
    """Writes checkpoints while no dispatch is pending.

    Args:
        keeper: writes the checkpoints; None for a run without checkpoints.
        leaves: returns the leaves of the loop state by name.
        facts: returns the metadata of the host as JSON, after making all logs durable.
    """

    def __init__(
        self,
        keeper: Checkpointer | None,
        leaves: Callable[[], Mapping[str, Any]],
        facts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.checkpointer, self._leaves, self._facts = keeper, leaves, facts
        self.consistent = True  # true between hooks; only then the state is safe to checkpoint after an error

    @contextlib.contextmanager
    def inconsistent(self) -> Iterator[None]:
        """Marks the state inconsistent until the host side of a hook has run.

        If the host side fails, no checkpoint may be written, since a resumed run has to run the hook again.
        """
        before, self.consistent = self.consistent, False
        yield
        self.consistent = before

    def finish(self) -> None:
        """Notes that the loop state is that of a result from here on."""
        self.consistent = False

    @property
    def writes(self) -> bool:
        """Whether the run writes checkpoints."""
        return self.checkpointer is not None

    @property
    def due(self) -> bool:
        """Whether a checkpoint is due."""
        return self.checkpointer is not None and self.checkpointer.due

    def request_save(self) -> None:
        """Requests a checkpoint as soon as no dispatch is pending."""
        if self.checkpointer is not None:
            self.checkpointer.request_save()

    def save(self, *, wait: bool = False) -> None:
        """Writes a checkpoint of the training. No dispatch may be pending."""
        if self.checkpointer is not None:
            self.checkpointer.save(self._leaves(), self._facts(), wait=wait)

    def save_result(self) -> None:
        """Writes the result of the run, after `on_train_end`."""
        if self.checkpointer is not None:
            self.checkpointer.save_result(self._leaves(), self._facts())
