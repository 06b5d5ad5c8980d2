"""`Summarize` actions: the model as a table on the terminal, with rich."""

from typing import Any

import jax

from jaxcb._summary import summarize
from jaxcb._summary_table import as_text, totals
from jaxcb.writers._writer import Writer


class SummaryWriter(Writer):
    """Prints the table; without FLOPs where the run has no traced step to tell."""

    def write(self, record: Any) -> None:
        run, action = self.context.run, record.action
        traced = run.traced_step() if run.traced_step is not None else None
        # shapes will do, and copies of a large model would not
        state = traced.state if traced is not None else jax.eval_shape(lambda s: s, run.state)
        summary = summarize(state, traced)
        print(as_text(summary.grouped(action.depth)) if action.verbose else totals(summary), flush=True)
