"""Ends runs as a crash would."""

from typing import Any

import jaxcb as jc


class Cut(Exception):
    """Ends a run as a crash would: nothing is saved on the way out."""


class CutAfter(jc.Callback):
    """Saves after a step, and cuts the run after the next one. Without a cut the program is the same."""

    at: int = 1000

    def on_batch_end(self, state: Any, metrics: Any) -> Any:
        return state, (
            jc.actions.Backup(when=metrics.step == self.at),
            jc.actions.Call(_cut, when=metrics.step > self.at),
        )


def _cut(run: Any) -> None:
    raise Cut
