"""`Freeze`: keeps some of the parameters, and their statistics, unchanged."""

from typing import Any

import jax.numpy as jnp

from jaxcb._src.core.actions.control import ScaleUpdates
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_int, check_texts
from jaxcb._src.utils.pytree import static


class Freeze(Callback):
    """Keeps the parameters that match a pattern unchanged, until an epoch or for the whole run.

    Their updates, weight decay included, are multiplied by 0, so freezing and unfreezing never retraces. Gradients are
    still computed, and the optimizer's statistics of them (Adam's moments) still change. Statistics of the model below
    a frozen path, such as those of batch norms, keep their values. `fit(trainable=)` saves the gradients and the
    optimizer's state, too, and needs another program to unfreeze. Requires a hook before the update: `fit`, or `Loop`
    with `Step`.

    Args:
        where: pattern of parameter paths, or a tuple of patterns: `*` matches any text within one part of a path,
            `**` any number of parts.
        until_epoch: the first epoch, from 0, in which they are trained; None freezes them for the whole run.

    Raises:
        TypeError: if a pattern is not a string.
        ValueError: if the epoch is below 0, or, before the first step, if a pattern matches no parameter.

    Example:
        >>> import jaxcb as jc
        >>> freeze = jc.callbacks.Freeze("backbone/**", until_epoch=2)
        >>> for epoch in (1, 2):
        ...     _, (action,) = freeze.on_before_update((), jc.Metrics({"loss": 1.0}, epoch=epoch))
        ...     print(epoch, action.where, float(action.factor), bool(action.when))
        1 backbone/** 0.0 True
        2 backbone/** 0.0 False

    Source: Lightning's `BaseFinetuning`, which changes the parameter groups of the optimizer.
    """

    where: str | tuple[str, ...] = static()
    until_epoch: Any = None

    def __post_init__(self) -> None:
        self._set("where", check_texts("Freeze", "where", self.where))
        if self.until_epoch is not None:
            self._set("until_epoch", check_int("Freeze", "until_epoch", self.until_epoch))

    def on_before_update(self, state: Any, metrics: Metrics) -> Any:
        frozen = jnp.ones((), bool) if self.until_epoch is None else metrics.epoch < self.until_epoch
        return state, tuple(ScaleUpdates(0.0, pattern, when=frozen) for pattern in self.where)
