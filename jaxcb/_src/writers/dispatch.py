"""`WriterDispatcher`: passes each record to its writer."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxcb._src.core.actions.base import HostAction, LogAction
from jaxcb._src.utils.names import class_key, entry_of
from jaxcb._src.writers.base import Context, Writer, writer_for


class WriterDispatcher:
    """The writers of a run, one per class, created for the actions that the run can have.

    Args:
        context: the context that is passed to the writers.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.writers: dict[type, Writer] = {}
        self._of: dict[type, Writer | None] = {}  # by kind of action

    def prepare(self, action: Any) -> None:
        """Passes an action to its writer's `prepare` before the first step.

        Raises:
            LookupError: if no writer is registered for it.
        """
        if isinstance(action, LogAction | HostAction) and (writer := self._writer(action)) is not None:
            writer.prepare(action)

    def _writer(self, action: Any) -> Writer | None:
        """Returns the writer of an action; None if another process has it."""
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
        """Performs records in order, and flushes; if a writer fails, the records of other writers are still performed.

        Raises:
            Exception: the first one that a writer raised, with notes on its action and callback, and on other writers
                that failed.
        """
        failed: set[Writer] = set()
        errors: list[Exception] = []
        written: dict[Writer, None] = {}
        for record in records:
            action = record.action
            writer = self._writer(action)
            if writer is None or writer in failed:
                continue
            try:
                written[writer] = None
                writer.write(record)
            except Exception as error:
                error.add_note(f"This happened while writing a {type(action).__name__} of {action.owner}.")
                failed.add(writer)
                errors.append(error)
        for writer in written:
            try:
                writer.flush()
            except Exception as error:
                error.add_note(f"This happened while {type(writer).__name__} passed on what it had written.")
                errors.append(error)
        if errors:
            first, *others = errors
            for error in others:
                first.add_note(f"Another writer failed, too: {error!r}")
            raise first

    def positions(self) -> dict[str, Any]:
        """Makes all output durable, and returns the position of each writer, as JSON."""
        found = {class_key(type(writer)): writer.position() for writer in self.writers.values()}
        return {name: position for name, position in found.items() if position is not None}

    def restore(self, positions: Mapping[str, Any]) -> None:
        """Restores the writers to their positions.

        Raises:
            ValueError: if a position is not one that such a writer returned.
        """
        for writer in self.writers.values():
            position = entry_of(positions, type(writer))
            if position is None:
                continue
            try:
                writer.restore(position)
            except (TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
                raise ValueError(
                    f"{self.context.checkpoint}: the position of {type(writer).__name__} is not one it has written "
                    f"({error!r}). Resume from another checkpoint, or start a new run."
                ) from error

    def warm_up(self) -> None:
        """Has the writers import what they need later."""
        for writer in self.writers.values():
            writer.warm_up()

    def tick(self, status: Any) -> None:
        """Passes the run's status to the writers."""
        for writer in self.writers.values():
            writer.tick(status)


def close_all(parts: Iterable[Any], failed: BaseException | None) -> None:
    """Closes each part; the user sees the first error.

    Raises:
        BaseException: the first one that closing raised, if there was no `failed` before.
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
