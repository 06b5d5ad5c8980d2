"""`WriterDispatcher`: gives each record to its writer."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxcb._src.core.actions.base import HostAction, LogAction
from jaxcb._src.utils.class_keys import class_key, entry_of
from jaxcb._src.writers.base import Context, Writer, writer_for


class WriterDispatcher:
    """The writers of a run, one a class, made for the actions that the run can have.

    Args:
        context: for the writers.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.writers: dict[type, Writer] = {}
        self._of: dict[type, Writer | None] = {}  # by kind of action

    def prepare(self, action: Any) -> None:
        """Shows an action to its writer before the first step.

        Raises:
            LookupError: where nobody performs it.
        """
        if isinstance(action, LogAction | HostAction) and (writer := self._writer(action)) is not None:
            writer.prepare(action)

    def _writer(self, action: Any) -> Writer | None:
        """The writer of an action; None where another process has it."""
        kind = type(action)
        if kind not in self._of:
            try:
                cls = writer_for(kind)
            except LookupError as error:
                raise LookupError(f"{action.owner}: {error}") from None
            if not self.context.processes.is_primary and not cls.everywhere:
                self._of[kind] = None
                return None
            if cls not in self.writers:
                self.writers[cls] = cls(self.context)
            self._of[kind] = self.writers[cls]
        return self._of[kind]

    def perform(self, records: Iterable[Any]) -> None:
        """Performs records in order; a writer that fails does not keep the others from theirs.

        Raises:
            Exception: the first one that a writer raised, with a note on whose action it was.
        """
        failed: dict[Writer, Exception] = {}
        for record in records:
            action = record.action
            writer = self._writer(action)
            if writer is None or writer in failed:
                continue
            try:
                writer.write(record)
            except Exception as error:
                error.add_note(f"This happened while writing a {type(action).__name__} of {action.owner}.")
                failed[writer] = error
        if failed:
            raise next(iter(failed.values()))

    def positions(self) -> dict[str, Any]:
        """Makes durable what was written, and returns where each writer stands, as JSON."""
        found = {class_key(type(writer)): writer.position() for writer in self.writers.values()}
        return {name: position for name, position in found.items() if position is not None}

    def restore(self, positions: Mapping[str, Any]) -> None:
        """Takes the writers back to where they stood.

        Raises:
            ValueError: for a position that no such writer has told.
        """
        for writer in self.writers.values():
            position = entry_of(positions, type(writer))
            if position is None:
                continue
            try:
                writer.restore(position)
            except (TypeError, KeyError, AttributeError, IndexError) as error:
                raise ValueError(
                    f"what the checkpoint says of {type(writer).__name__} is not what one has written "
                    f"({error!r}). Resume from another checkpoint, or begin a new run."
                ) from error

    def tick(self, status: Any) -> None:
        """Tells the writers where the run stands."""
        for writer in self.writers.values():
            writer.tick(status)


def close_all(parts: Iterable[Any], failed: BaseException | None) -> None:
    """Closes each part; the first error is the one that the user sees.

    Raises:
        BaseException: the first one that closing raised, where nothing had `failed` before.
    """
    first = failed
    for part in parts:
        try:
            part.close()
        except BaseException as error:
            error.add_note(f"This happened while closing {type(part).__name__}.")
            if first is None:
                first = error
            else:
                first.add_note(f"And then closing {type(part).__name__} failed: {error!r}")
    if failed is None and first is not None:
        raise first
