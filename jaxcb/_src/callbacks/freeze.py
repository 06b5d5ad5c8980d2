"""`Freeze`: keep some of the parameters as they are."""

from typing import Any

import jax.numpy as jnp

from jaxcb._src.core.actions.control import ScaleUpdates
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.pytree import static
from jaxcb._src.utils.validate import check_int


class Freeze(Callback):
    """Keeps the parameters that match a pattern as they are, until an epoch or for the whole run.

    Their updates are multiplied by 0, weight decay included, so that freezing and unfreezing retraces nothing. The
    gradients are still computed, and what an optimizer remembers of them (Adam's moments) moves on, as do the
    statistics of batch norms. Needs the gradients before the update: `fit`, or `Loop` with `Step`.

    Args:
        where: pattern of parameter paths, or a tuple of them: `*` stands for anything within a part of a path,
            `**` across parts.
        until_epoch: the first epoch, from 0, in which they are trained; None freezes them for ever.

    Raises:
        TypeError: for a pattern that is no string.
        ValueError: for an epoch below 0; before the first step for a pattern that matches no parameter.

    Example:
        >>> import jaxcb as jc
        >>> freeze = jc.callbacks.Freeze("backbone/**", until_epoch=2)
        >>> for epoch in (1, 2):
        ...     _, (action,) = freeze.on_before_update((), jc.Metrics({"loss": 1.0}, epoch=epoch))
        ...     print(epoch, action.where, float(action.factor), bool(action.when))
        1 backbone/** 0.0 True
        2 backbone/** 0.0 False

    Source: Lightning's `BaseFinetuning`, which changes what the optimizer holds.
    """

    where: str | tuple[str, ...] = static()
    until_epoch: Any = None

    def __post_init__(self) -> None:
        patterns = (self.where,) if isinstance(self.where, str) else self.where
        if not isinstance(patterns, tuple | list) or not patterns or not all(isinstance(p, str) for p in patterns):
            raise TypeError(
                f"Freeze: where must be a pattern such as 'backbone/**', or some of them, got {patterns!r}."
            )
        self._set("where", tuple(patterns))
        if self.until_epoch is not None:
            self._set("until_epoch", check_int("Freeze", "until_epoch", self.until_epoch))

    def on_before_update(self, state: Any, metrics: Metrics) -> Any:
        frozen = jnp.ones((), bool) if self.until_epoch is None else metrics.epoch < self.until_epoch
        return state, tuple(ScaleUpdates(0.0, pattern, when=frozen) for pattern in self.where)
