"""`NormMonitor`: norms of gradients, updates and parameters, as metrics and as curves."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxcb._src.core.actions.tensorboard import Scalars
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.training import probes
from jaxcb._src.training.probes import Probe
from jaxcb._src.utils.errors import check_bool, check_choice, check_int, check_texts
from jaxcb._src.utils.pytree import static

_MAKERS = {
    "grad_norm": probes.grad_norm,
    "update_norm": probes.update_norm,
    "param_norm": probes.param_norm,
    "update_ratio": probes.update_ratio,
}


class NormMonitor(Callback):
    """Measures norms within the training step, every few steps, and logs them to TensorBoard.

    They are metrics under their names, so the history has their means over the measured steps of an epoch.

    Args:
        every: steps between two measurements.
        of: the norms to measure: "grad_norm", "update_norm", "param_norm", and "update_ratio" (updates over
            parameters).
        per_layer: a norm for each layer, `grad_norm/path/of/layer`, instead of one for all parameters.

    Raises:
        ValueError: for an unknown norm.

    Example:
        >>> import jaxcb as jc
        >>> sorted(jc.callbacks.NormMonitor(every=10, of=("grad_norm",)).probes())
        ['grad_norm']
    """

    logs_only: ClassVar[bool] = True

    every: int = static(default=100)
    of: tuple[str, ...] = static(default=("grad_norm", "update_norm", "param_norm", "update_ratio"))
    per_layer: bool = static(default=False)

    def __post_init__(self) -> None:
        self._set("every", check_int("NormMonitor", "every", self.every, least=1))
        self._set("per_layer", check_bool("NormMonitor", "per_layer", self.per_layer))
        self._set("of", check_texts("NormMonitor", "of", self.of))
        for name in self.of:
            check_choice("NormMonitor", "of", name, tuple(_MAKERS))

    def probes(self) -> Mapping[str, Probe]:
        return {name: _MAKERS[name](every=self.every, per_layer=self.per_layer) for name in self.of}

    def on_batch_end(self, state: Any, metrics: Metrics) -> Any:
        names = list(self.of)
        if self.per_layer:
            names = [name for name in metrics if name.startswith(tuple(f"{base}/" for base in self.of))]
        if not names:
            return state, None
        return state, Scalars({name: metrics[name] for name in names}, when=metrics.fresh(names[0]))
