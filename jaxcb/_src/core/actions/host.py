"""Host actions: they need the live run on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from jaxcb._src.core.actions.base import HostAction
from jaxcb._src.utils.errors import check_choice, check_int
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class Call(HostAction):
    """Calls `fn(run)` with the live run.

    Attributes:
        fn: a function of one `Run`.
        values: the metrics of the hook call, for `run.logs`, name -> array.
    """

    fn: Callable[[Any], Any] = static()
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


class Checkpoint(HostAction):
    """Saves the current weights in a directory, with Orbax; `jc.load` and `ocp.load` read it.

    Attributes:
        path: the directory, a template filled as `Stop.reason` is: `"{epoch:02d}-{val_loss:.2f}"`, epoch from 1.
            A relative path is below `run_dir` if there is one. An existing checkpoint is replaced once the new one is
            complete.
        what: "model" for a dict of `params` and `model_state`, "state" for the whole train state.
        values: further values of the template, name -> scalar.
        value: the value to rank by, float32 (), NaN for never best; None for no ranking.
        mode: "min" or "max": which values are better.
        max_to_keep: how many of the newest checkpoints of this action to keep; None for all, or for one if `keep_best`
            is given.
        keep_best: how many of the best checkpoints to keep besides these; None for no such rule.
        async_: whether to write the checkpoint in the background.
        validated: whether to save the weights that validations use, where a callback keeps averages for them.
        on_saved: a function of the complete checkpoint (`jc.writers.CheckpointSaved`), called on the run's thread; None
            for no function.
    """

    path: str = static()
    what: Literal["model", "state"] = static(default="model")
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)
    value: Any = dataclasses.field(default=None, kw_only=True)
    mode: Literal["min", "max"] = static(default="min", kw_only=True)
    max_to_keep: int | None = static(default=None, kw_only=True)
    keep_best: int | None = static(default=None, kw_only=True)
    async_: bool = static(default=False, kw_only=True)
    validated: bool = static(default=False, kw_only=True)
    on_saved: Callable[[Any], Any] | None = static(default=None, kw_only=True)

    template = "path"

    def __post_init__(self) -> None:
        self._set("path", path_text("Checkpoint", "path", self.path))
        check_choice("Checkpoint", "what", self.what, ("model", "state"))
        check_choice("Checkpoint", "mode", self.mode, ("min", "max"))
        for name in ("max_to_keep", "keep_best"):
            if getattr(self, name) is not None:
                self._set(name, check_int("Checkpoint", name, getattr(self, name), least=1))
        if self.keep_best is not None and self.value is None:
            raise ValueError("Checkpoint: keep_best needs value=, the value to rank by.")


class Backup(HostAction):
    """Saves the whole run in its directory, so that a killed run can resume from here."""


class Profile(HostAction):
    """Starts or stops a profile of the device and the host by `jax.profiler`.

    TensorBoard's plugin `xprof`, XProf itself and Perfetto show it.

    Attributes:
        begins: True to start the profile, False to stop it. The end of the run stops it too.
        log_dir: the directory to write to; a relative path is below `run_dir` if there is one.
    """

    begins: bool = static()
    log_dir: str = static(default="logs", kw_only=True)

    def __post_init__(self) -> None:
        self._set("log_dir", path_text("Profile", "log_dir", self.log_dir))


class Summarize(HostAction):
    """Prints a summary of the model: its arrays, their sizes, and the FLOPs of a forward pass.

    Attributes:
        depth: the number of leading path parts to group arrays by, one line per group; None for one line per array.
        verbose: 1 for a table, 0 for one line with the totals.
    """

    depth: int | None = static(default=None)
    verbose: int = static(default=1)
