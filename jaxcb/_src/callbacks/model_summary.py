"""`ModelSummary`: prints a summary of the model before the first step."""

from typing import Any, ClassVar

from jaxcb._src.core.actions.host import Summarize
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_choice, check_int
from jaxcb._src.utils.pytree import static


class ModelSummary(Callback):
    """Prints a table of the model's arrays: path, shape, dtype, parameters, bytes and FLOPs, with totals.

    FLOPs are those of one forward pass on a training batch: matrix products and convolutions, attributed to the
    parameters that they use and counted in the traced step. `jc.model_summary` returns the same table outside a run.

    Args:
        depth: the number of leading path parts to group arrays by, one line per group; None for one line per array.
        verbose: 1 for the table, 0 for one line with the totals.

    Raises:
        ValueError: if the depth is not an integer above 0, or for another `verbose`.

    Example:
        >>> import jaxcb as jc
        >>> callback = jc.callbacks.ModelSummary(depth=1)
        >>> state, action = callback.on_train_begin(callback.init(), jc.Metrics({}))
        >>> action.depth, bool(action.when)
        (1, True)

    Source: `lightning.pytorch.callbacks.ModelSummary`; `flax.nnx.tabulate`.
    """

    logs_only: ClassVar[bool] = True

    depth: int | None = static(default=None)
    verbose: int = static(default=1)

    def __post_init__(self) -> None:
        if self.depth is not None:
            self._set("depth", check_int("ModelSummary", "depth", self.depth, least=1))
        check_choice("ModelSummary", "verbose", self.verbose, (0, 1))

    def on_train_begin(self, state: Any, metrics: Metrics) -> Any:
        return state, Summarize(self.depth, self.verbose)
