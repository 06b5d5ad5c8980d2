"""Pictures of a run's curves."""

from pathlib import Path
from typing import Any

import numpy as np

_RATES = ("learning_rate", "lr_scale")
_NEVER = ("learning_rate", "base_learning_rate", "lr_scale")


def curves(result: Any, path: str | Path | None = None) -> Any:
    """Draws each metric with its validation twin, and the learning rate, over the epochs.

    Marks the stop, the best epoch of an `EarlyStopping`, and the callbacks' cuts of the rate.

    Args:
        result: a `Result`.
        path: a picture file to save.

    Returns:
        The matplotlib figure.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot() needs matplotlib: pip install jaxcb[plot].") from None
    history = result.history
    names = [n for n in history if n not in _NEVER and not n.startswith("val_") and history[n].ndim == 1]
    rates = [n for n in _RATES if n in history][:1]
    figure = Figure(figsize=(7.5, 2.4 * (len(names) + len(rates)) + 0.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(names) + len(rates), 1, sharex=True))
    at = _positions(history)
    for axis, name in zip(axes, [*names, *rates], strict=True):
        _draw(axis, history, at, name)
        _mark(axis, result, at)
        axis.set_ylabel(name.replace("_", " "))
        axis.grid(alpha=0.25)
        handles, labels = axis.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axis.legend(unique.values(), unique.keys(), fontsize=8, loc="best")
    if rates:
        axes[-1].set_yscale("log")
    axes[-1].set_xlabel("epoch")
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    return figure


def _positions(history: Any) -> np.ndarray:
    """Where each row stands, in epochs: an epoch's end at its number, a validation within it in between."""
    ends = np.r_[history.epoch[1:] != history.epoch[:-1], True] if len(history.epoch) else np.zeros(0, bool)
    steps = np.interp(history.step, np.r_[0, history.step[ends]], np.r_[0, history.epoch[ends] + 1])
    return np.asarray(steps, float)


def _draw(axis: Any, history: Any, at: np.ndarray, name: str) -> None:
    pairs = [(name, "train" if f"val_{name}" in history or name not in _NEVER else name)]
    pairs += [(n, n.removesuffix(f"_{name}") if n != f"val_{name}" else "validation") for n in history if _is_twin(n, name)]
    for own, label in pairs:
        reported = history.reported(own)
        axis.plot(at[reported], history[own][reported], marker=".", markersize=4, linewidth=1.4, label=label)


def _is_twin(name: str, of: str) -> bool:
    return name == f"val_{of}" or (name.startswith("val_") and name.endswith(f"_{of}"))


def _mark(axis: Any, result: Any, at: np.ndarray) -> None:
    for state in result.callback_states.values():
        best = getattr(state, "best_epoch", None)
        if best is not None and int(best) >= 0:
            axis.axvline(int(best) + 1, color="tab:green", linestyle="--", linewidth=1, label="best epoch")
    for epoch in cuts(result.history):
        axis.axvline(epoch, color="tab:orange", linestyle=":", linewidth=1, label="rate cut")
    if result.stopped_epoch is not None:
        axis.axvline(at[-1], color="tab:red", linestyle="-", linewidth=1, label="stop")


def cuts(history: Any) -> list[float]:
    """Returns where the callbacks' factor on the rate went down, in epochs."""
    if "lr_scale" in history:
        scale = history["lr_scale"]
    elif "learning_rate" in history:
        scale = history["learning_rate"] / np.where(history["base_learning_rate"] == 0, 1, history["base_learning_rate"])
    else:
        return []
    at = _positions(history)
    # a row shows the rate of its last update, so a cut stands at the row before the one that shows it
    return [float(at[i]) for i in range(len(scale) - 1) if scale[i + 1] < scale[i] * 0.999]
