"""`WandbLogger`: logs the metrics to Weights & Biases."""

from typing import Any, ClassVar, Literal

from jaxcb._src.callbacks.options import Options
from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import WandbLog
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_text
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class WandbLogger(Reporter):
    """Logs the metrics to a run in Weights & Biases, by step. Requires `pip install jaxcb[wandb]`.

    Without arguments, and if there is an active run (`wandb.run`), it logs to that run and leaves it open. Otherwise it
    starts a run and finishes it; its files are below `run_dir` if there is one. If the service cannot be reached,
    there is one warning, and records wait in `run_dir`; `mode="offline"` needs no service. A resumed run is one run in
    W&B: online it continues at the last step there, offline it has several folders with one id. Metrics that are arrays
    are left out.

    Args:
        project: the project.
        every: "epoch" for the values at the end of each epoch and at each validation within an epoch. A number of
            steps adds, when `step % every == 0`, the step's own values as `batch_loss` and so on.
        init: further arguments of `wandb.init`, by name: `name` (of the W&B run), `config`, `mode`, `settings`...

    Raises:
        ValueError: for an invalid `every`.

    Example:
        >>> import jaxcb as jc
        >>> logger = jc.callbacks.WandbLogger("digits", mode="offline", config={"rate": 0.1})
        >>> dict(logger.options)
        {'project': 'digits', 'mode': 'offline', 'config': {'rate': 0.1}}

    Source: `wandb.integration.keras.WandbMetricsLogger`.
    """

    _builds_itself: ClassVar[bool] = True

    options: Options | None = static(default=None)

    def __init__(self, project: str | None = None, *, every: int | Literal["epoch"] = "epoch", **init: Any) -> None:
        if project is not None:
            check_text("WandbLogger", "project", project)
        given = ({} if project is None else {"project": project}) | init
        if init.get("dir") is not None:
            given["dir"] = path_text("WandbLogger", "dir", init["dir"], buckets=False)
        self._set("options", Options(given) if given else None)
        self._set("every", every)
        self._set("name", None)
        self._check_every()

    def on_train_begin(self, state: Any, metrics: Metrics) -> Any:
        return state, self._report({}, {}, when=True)  # opens the run, or fails, before the first step

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> WandbLog:
        return WandbLog(values, fresh, self.options, when=when)
