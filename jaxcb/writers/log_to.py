"""`HandOver` actions: a user's function, with the fresh values."""

from typing import Any

from jaxcb.writers._scalars import fresh_floats
from jaxcb.writers._writer import Writer


class HandOverWriter(Writer):
    """Calls the function; one whose service is down is warned of once."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._told: set[str] = set()

    def write(self, record: Any) -> None:
        action, values = record.action, fresh_floats(record.action)
        if not values or self.context.trial:
            return
        try:
            action.fn(record.step, values)
        except OSError as error:  # what sockets, files and most clients raise where something is down
            if action.owner not in self._told:
                self._told.add(action.owner)
                self.context.warn(
                    f"the function of {action.owner} failed at step {record.step}: {error!r}. The run goes on; this is "
                    "said once."
                )
