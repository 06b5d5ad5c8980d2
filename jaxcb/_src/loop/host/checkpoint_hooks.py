"""`Saving`: checkpoints a run while no dispatch is pending."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxcb._src.checkpointing.checkpointer import Keeper


class Saving:
    """Checkpoints a run while no dispatch is pending.

    Args:
        keeper: writes the checkpoints; None where the run is not saved.
        leaves: returns the loop state to save, by name.
        facts: returns what the host knows of the run, as JSON; all that was logged so far is durable when it returns.
    """

    def __init__(
        self,
        keeper: Keeper | None,
        leaves: Callable[[], Mapping[str, Any]],
        facts: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.keeper, self._leaves, self._facts = keeper, leaves, facts
        self.whole = True  # whether no moment is half done: only then a run that failed is saved

    @contextlib.contextmanager
    def moment(self) -> Iterator[None]:
        """A moment that is whole only when the host has done its part: one that fails has to come again."""
        before, self.whole = self.whole, False
        yield
        self.whole = before

    @property
    def due(self) -> bool:
        """Whether the run is to be saved."""
        return self.keeper is not None and self.keeper.due

    def ask(self) -> None:
        """Asks for a save at the next place where nothing is under way."""
        if self.keeper is not None:
            self.keeper.ask()

    def save(self, *, wait: bool = False) -> None:
        """Saves the training; nothing may be under way."""
        if self.keeper is not None:
            self.keeper.save(self._leaves(), self._facts(), wait=wait)

    def save_result(self) -> None:
        """Saves what the run has come to, after `on_train_end`."""
        if self.keeper is not None:
            self.keeper.save_result(self._leaves(), self._facts())
