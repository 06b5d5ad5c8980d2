"""`WandbLogger`: the metrics in Weights & Biases."""

from typing import Any, ClassVar, Literal

from jaxcb._src.callbacks.options import Options
from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import WandbLog
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class WandbLogger(Reporter):
    """Logs the metrics to a run in Weights & Biases, by step. Needs `pip install jaxcb[wandb]`.

    Without arguments, and where a run is open (`wandb.run`), it logs to that one and leaves it open. Else it makes a
    run of its own and finishes it. Its files lie below `run_dir` where there is one. A service that cannot be
    reached is warned of once, and the run goes on without it; `mode="offline"` needs none. Metrics that are arrays
    are left out.

    Args:
        project: the project.
        every: "epoch" for the values at the end of each epoch and at each validation in its middle; a number of
            steps for those and, when `step % every == 0`, the step's own values, as `batch_loss`.
        init: further arguments of `wandb.init`, by name: `name` (of the W&B run), `config`, `mode`, `settings`...

    Raises:
        ValueError: for another `every`.

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
        given = ({} if project is None else {"project": project}) | init
        if init.get("dir") is not None:
            given["dir"] = path_text("WandbLogger", "dir", init["dir"])
        self._set("options", Options(given) if given else None)
        self._set("every", every)
        self._set("name", None)
        self._check_every()

    def on_train_begin(self, state: Any, metrics: Metrics) -> Any:
        return state, self._report({}, {}, when=True)  # so that it opens, or fails, before the first step

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> WandbLog:
        return WandbLog(values, fresh, self.options, when=when)
