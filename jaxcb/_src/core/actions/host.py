"""Host actions: what needs the live run on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from jaxcb._src.core.actions.base import HostAction
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static
from jaxcb._src.utils.validate import check_choice, check_int


class Call(HostAction):
    """Calls `fn(run)` with the live run.

    Attributes:
        fn: a function of one `Run`.
        values: the metrics of the moment for `run.logs`, name -> array.
    """

    fn: Callable[[Any], Any] = static()
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


class Checkpoint(HostAction):
    """Saves the weights of this moment in a directory of its own, with Orbax; `jc.load` and `ocp.load` read it.

    Attributes:
        path: the directory, a template filled as `Stop.reason` is: `"{epoch:02d}-{val_loss:.2f}"`, epoch from 1.
            Relative ones lie below `run_dir` where there is one. A checkpoint that is there is replaced once the
            new one is complete.
        what: "model" for a dict of `params` and `model_state`, "state" for the whole train state.
        values: what the template needs beyond metrics, name -> scalar.
        value: what it is ranked by, float32 (), NaN for what is never best; None where nothing ranks it.
        mode: "min" or "max", which values are better.
        max_to_keep: how many of the latest that this action saved stay; None for all, or for one where `keep_best`
            is given.
        keep_best: how many of those with the best values stay besides them; None for no such rule.
        async_: whether the save goes on in the background.
    """

    path: str = static()
    what: Literal["model", "state"] = static(default="model")
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)
    value: Any = dataclasses.field(default=None, kw_only=True)
    mode: Literal["min", "max"] = static(default="min", kw_only=True)
    max_to_keep: int | None = static(default=None, kw_only=True)
    keep_best: int | None = static(default=None, kw_only=True)
    async_: bool = static(default=False, kw_only=True)

    template = "path"

    def __post_init__(self) -> None:
        self._set("path", path_text("Checkpoint", "path", self.path))
        check_choice("Checkpoint", "what", self.what, ("model", "state"))
        check_choice("Checkpoint", "mode", self.mode, ("min", "max"))
        for name in ("max_to_keep", "keep_best"):
            if getattr(self, name) is not None:
                self._set(name, check_int("Checkpoint", name, getattr(self, name), least=1))
        if self.keep_best is not None and self.value is None:
            raise ValueError("Checkpoint: keep_best needs value=, which it ranks by.")


class Backup(HostAction):
    """Saves the whole run in its directory, so that a killed one goes on from here."""


class Profile(HostAction):
    """Begins a profile of the device and the host by `jax.profiler`, or ends it.

    TensorBoard's plugin `xprof` shows it, as do XProf itself and Perfetto.

    Attributes:
        begins: whether it begins here; else it ends. What is not ended when the run ends, ends with it.
        log_dir: the directory that it goes into; relative ones lie below `run_dir` where there is one.
    """

    begins: bool = static()
    log_dir: str = static(default="logs", kw_only=True)

    def __post_init__(self) -> None:
        self._set("log_dir", path_text("Profile", "log_dir", self.log_dir))


class Summarize(HostAction):
    """Prints what the model is made of: its arrays, what they hold, and the FLOPs of a forward pass.

    Attributes:
        depth: one line for all arrays that share so many first parts of their path; None for a line an array.
        verbose: 1 for a table, 0 for one line with the totals.
    """

    depth: int | None = static(default=None)
    verbose: int = static(default=1)
