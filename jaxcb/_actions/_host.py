"""Host actions: what needs the live run on the host."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from jaxcb._actions._base import HostAction
from jaxcb._struct import static


class Call(HostAction):
    """Calls `fn(run)` with the live run.

    Attributes:
        fn: a function of one `Run`.
        values: the metrics of the moment for `run.logs`, name -> array.
    """

    fn: Callable[[Any], Any] = static()
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


class Checkpoint(HostAction):
    """Saves the weights of this moment in a directory of its own, with Orbax; `ocp.load` reads it.

    Attributes:
        path: the directory, a template filled as `Stop.reason` is: `"{epoch:02d}-{val_loss:.2f}"`, epoch from 1.
            Relative ones lie below `run_dir` where there is one. A checkpoint that is there is replaced once the
            new one is complete.
        what: "model" for a dict of `params` and `model_state`, "state" for the whole train state.
        values: what the template needs beyond metrics, name -> scalar.
    """

    path: str = static()
    what: str = static(default="model")
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    template = "path"

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike) or not os.fspath(self.path):
            raise TypeError(f"Checkpoint takes the path of a directory, got {self.path!r}.")
        if self.what not in ("model", "state"):
            raise ValueError(f'Checkpoint: what must be "model" or "state", got {self.what!r}.')
        self._set("path", os.fspath(self.path))


class Summarize(HostAction):
    """Prints what the model is made of: its arrays, what they hold, and the FLOPs of a forward pass.

    Attributes:
        depth: one line for all arrays that share so many first parts of their path; None for a line an array.
        verbose: 1 for a table, 0 for one line with the totals.
    """

    depth: int | None = static(default=None)
    verbose: int = static(default=1)
