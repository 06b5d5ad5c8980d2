"""`Call` actions: a user's function, with the live run."""

from typing import Any

import numpy as np

from jaxcb.writers._writer import Writer


class CallWriter(Writer):
    """Calls the function; what it raises names its callback and moment."""

    def write(self, record: Any) -> None:
        run, action = self.context.run, record.action
        logs = {name: np.asarray(v).item() if np.ndim(v) == 0 else np.asarray(v) for name, v in action.values.items()}
        run._enter(record, logs)
        try:
            action.fn(run)
        except Exception as error:
            error.add_note(
                f"This happened in the callback {action.owner}.{record.hook}, in epoch {record.epoch + 1} at step "
                f"{record.step}."
            )
            raise
