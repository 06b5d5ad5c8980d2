"""`Call` actions: a user's function, with the live run."""

from typing import Any

import numpy as np

from jaxcb.writers._writer import Writer


class CallWriter(Writer):
    """Calls the function; what it raises names its callback and moment."""

    def write(self, record: Any) -> None:
        run, action, context = self.context.run, record.action, self.context
        fresh = getattr(action, "fresh", {})  # a `Call` shows every value, its kinds may tell which are new
        values = {name: np.asarray(v) for name, v in action.values.items() if np.all(fresh.get(name, True))}
        logs = {name: v.item() if v.ndim == 0 else v for name, v in values.items()}
        run.params = {"epochs": context.epochs, "steps": context.steps_per_epoch, "verbose": context.verbose}
        run._enter(record, logs)
        try:
            action.fn(run)
        except Exception as error:
            error.add_note(
                f"This happened in the callback {action.owner}.{record.hook}, in epoch {record.epoch + 1} at step "
                f"{record.step}."
            )
            raise
