"""`lr_find`: the learning-rate range test, as a sweep inside one program."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.loop.compiled.member_map import STRATEGIES
from jaxcb._src.plotting.figure import new_figure, save
from jaxcb._src.sweep.sweep import sweep
from jaxcb._src.utils.errors import check_choice, check_int, check_number, check_seed
from jaxcb._src.utils.local_path import local_path
from jaxcb._src.utils.pytree import Struct, static, to_strong_types


@dataclass(frozen=True)
class LRFind:
    """What a learning-rate range test has found.

    Attributes:
        rates: the learning rates, float64 (rates,), rising.
        losses: the smoothed training loss at the end with each, float32 (rates,); NaN or infinite where it diverged.
        suggestion: the rate at which the loss falls most steeply towards its minimum; None where it nowhere falls.
    """

    rates: np.ndarray = field(repr=False)
    losses: np.ndarray = field(repr=False)
    suggestion: float | None

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws the loss over the rate, with the suggestion marked.

        Args:
            path: a picture file to save.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: without matplotlib (`pip install jaxcb[plot]`).
        """
        path = None if path is None else local_path("LRFind.plot", "path", path)
        figure = new_figure((7.0, 4.0))
        axis = figure.subplots()
        known = np.isfinite(self.losses)
        axis.plot(self.rates[known], self.losses[known], marker=".", linewidth=1.4)
        if known.any():  # what explodes would press the rest flat
            low, first = self.losses[known].min(), self.losses[known][0]
            axis.set_ylim(low - 0.1 * max(first - low, 1e-12), first + 0.5 * max(first - low, 1e-12))
        if self.suggestion is not None:
            axis.axvline(self.suggestion, color="tab:red", linestyle="--", label=f"suggestion {self.suggestion:.2g}")
            axis.legend(fontsize=9)
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_ylabel("smoothed training loss")
        axis.grid(alpha=0.25)
        save(figure, path)
        return figure


class _SmoothedState(Struct):
    value: Any  # float32 (), the exponential mean
    weight: Any  # float32 (), the sum of the weights in it; below 1, since it has a beginning


class _Smoothed(Callback):
    """The exponential mean of the training loss; a member that has diverged stops."""

    decay: float = static(default=0.9)

    def init(self) -> _SmoothedState:
        return to_strong_types(_SmoothedState(0.0, 0.0))

    def on_batch_end(self, state: _SmoothedState, metrics: Metrics) -> Any:
        loss = metrics["loss"].astype(jnp.float32)
        weight = self.decay * state.weight + (1 - self.decay)
        value = state.value + (loss - state.value) * ((1 - self.decay) / weight)  # a constant's is that constant
        return _SmoothedState(value, weight), Stop(~jnp.isfinite(loss), "the loss is no longer finite")


def lr_find(  # noqa: PLR0913
    model_fn: Any,
    loss_fn: Callable[..., Any],
    train_data: Any,
    *,
    optimizer: Callable[..., optax.GradientTransformation],
    low: float = 1e-6,
    high: float = 10.0,
    rates: int = 64,
    steps: int = 100,
    batch_size: int | None = None,
    seed: int = 0,
    strategy: Literal["vmap", "map", "shard"] | None = None,
) -> LRFind:
    """Looks for a learning rate: trains the same model with many of them for a while, all in one program.

    Each rate starts from the same weights and sees the same batches, so that the losses are comparable. The classical
    test raises the rate within one run instead, where each loss owes something to all smaller rates before it.

    Args:
        model_fn: a function of the seed that returns a model, or a model, as for `sweep`.
        loss_fn: as for `fit`.
        train_data: as for `fit`.
        optimizer: an optax factory such as `optax.adam`.
        low: the smallest rate.
        high: the largest one.
        rates: how many, evenly spaced by their logarithm.
        steps: updates with each.
        batch_size: rows of a batch, for arrays.
        seed: of the model, the keys and the order of the data.
        strategy: as for `sweep`.

    Returns:
        An `LRFind`: `suggestion`, `rates`, `losses` and `plot()`.

    Raises:
        ValueError: for arguments out of range.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> found = jc.lr_find({"w": jnp.zeros((1, 1))}, lambda p, b: jnp.mean((b[0] @ p["w"] - b[1]) ** 2), (x, 3 * x),
        ...                    optimizer=optax.adam, rates=16, steps=30)
        >>> 1e-3 < found.suggestion < 1
        True

    Source: Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017; the suggestion is fastai's "steep".
    """
    low, high = check_number("lr_find", "low", low), check_number("lr_find", "high", high)
    if not 0 < low < high:
        raise ValueError(f"lr_find: low must be above 0 and below high, got {low} and {high}.")
    count = check_int("lr_find", "rates", rates, least=3, concrete=True)
    if batch_size is not None:
        batch_size = check_int("lr_find", "batch_size", batch_size, least=1, concrete=True)
    check_choice("lr_find", "strategy", strategy, (None, *STRATEGIES))
    values = np.geomspace(low, high, count)
    result = sweep(
        model_fn,
        loss_fn,
        train_data,
        over={"optimizer.learning_rate": values.tolist()},
        optimizer=optimizer,
        callbacks=[_Smoothed(name="lr_find")],
        steps=check_int("lr_find", "steps", steps, least=1, concrete=True),
        batch_size=batch_size,
        seed=check_seed("lr_find", seed),
        strategy=strategy,
        verbose=0,
    )
    states = [m.callback_states["lr_find"] for m in result]
    losses = np.asarray([float(s.value) for s in states], np.float32)
    return LRFind(values, losses, _steepest(values, losses))


def _steepest(rates: np.ndarray, losses: np.ndarray) -> float | None:
    """The rate of the steepest fall left of the minimum."""
    known = np.isfinite(losses)
    if not known.any():
        return None
    end = int(np.argmin(np.where(known, losses, np.inf))) + 1
    if end < 3:
        return None
    slope = np.gradient(losses[:end].astype(float), np.log(rates[:end]))
    at = int(np.argmin(slope))
    return float(rates[at]) if slope[at] < 0 else None
