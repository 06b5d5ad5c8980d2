"""Log actions for TensorBoard that show what is known of a run before its first step, or when it has ended."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jaxcb._actions._series import TensorBoardAction
from jaxcb._struct import static

if TYPE_CHECKING:
    from jax.extend import core  # imports Pallas


class Graph(TensorBoardAction):
    """The operations that a model's loss is computed by, for TensorBoard's Graphs page.

    They stand in the modules and functions that called them, with shapes on the edges.

    Attributes:
        jaxpr: what to draw, as `jax.make_jaxpr` returns it; None for the run's training step, as far as its loss.
        outputs: names of the step's metrics whose computation is drawn, where `jaxpr` is None; () for "loss" where
            there is one, and else for all.

    Example:
        >>> import jax, jaxcb as jc, jax.numpy as jnp
        >>> jc.Graph(jax.make_jaxpr(lambda w, x: jnp.tanh(x @ w))(jnp.ones((3, 4)), jnp.ones((5, 3)))).run
        'train'
    """

    jaxpr: "core.ClosedJaxpr | None" = static(default=None, repr=False)
    outputs: tuple[str, ...] = static(default=(), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jaxpr is not None and not hasattr(self.jaxpr, "jaxpr"):
            raise TypeError(f"Graph takes what jax.make_jaxpr(fn)(*args) returns, got a {type(self.jaxpr).__name__}.")
        self._set("outputs", (self.outputs,) if isinstance(self.outputs, str) else tuple(self.outputs))


class Configuration(TensorBoardAction):
    """What was set for the run, as a table on TensorBoard's Text page: `fit`'s arguments and the callbacks'.

    Attributes:
        tag: its name.
    """

    tag: str = static(default="configuration")


class HParams(TensorBoardAction):
    """What was set, and what the run came to, for TensorBoard's HParams page, which compares runs.

    Without `final` it begins the run's line: `settings` besides what the run knows itself, `fit`'s arguments and those
    numbers of callbacks that a sweep can change. With `final` it ends the line.

    Attributes:
        settings: name -> number, text or boolean; None is left out. Kept as pairs.
        final: name -> scalar, the metrics at the end; they stand in the column `final/name`.

    Example:
        >>> import jaxcb as jc
        >>> jc.HParams({"units": 128, "activation": "relu"}).settings
        (('units', 128), ('activation', 'relu'))
    """

    settings: Any = static(default=())
    final: dict[str, Any] | None = dataclasses.field(default=None, kw_only=True)
    run: str = static(default="hparams", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = tuple(self.settings.items() if isinstance(self.settings, Mapping) else self.settings)
        for name, value in pairs:
            if not (value is None or isinstance(value, bool | int | float | str)):
                raise TypeError(
                    f"HParams: {name!r} is a {type(value).__name__}, expected a number, a text or a boolean."
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"HParams: {name!r} is {value}, expected a finite number.")
        self._set("settings", tuple((str(name), value) for name, value in pairs))
        for name, value in (self.final or {}).items():
            if jnp.ndim(value):
                raise ValueError(f"HParams: final takes scalars, got {name!r} of shape {jnp.shape(value)}.")
