"""Names and texts of metrics: columns of tables, numbers as text, and the direction that a name implies.

It imports no JAX, so that the command line can read a run without it.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcb._src.utils.errors import check_choice, shown

MISSING = "NA"


def columns(name: str, shape: tuple[int, ...]) -> list[str]:
    """Returns the names of the columns of an array in a table: `name[0]`, `name[1]`; `name` for a scalar."""
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def in_columns(values: Mapping[str, Any], fresh: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values of a row, and which of them are fresh, with one name for each number of an array."""
    flat: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for name, value in values.items():
        array = np.asarray(value)
        for column, number in zip(columns(name, array.shape), array.reshape(-1), strict=True):
            flat[column], new[column] = number, fresh[name]
    return flat, new


def as_text(value: Any) -> str:
    """Formats a number as the shortest decimal that parses to the same number of its dtype."""
    value = np.asarray(value)
    if value.dtype.kind in "iub":
        return str(int(value))
    return str(value.astype(np.float32) if value.dtype.itemsize < 4 else value[()])


def row_text(values: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, str]:
    """Formats the values of a row; values that were not reported become `NA`."""
    return {name: as_text(value) if bool(fresh[name]) else MISSING for name, value in values.items()}


# words of a metric's name that say which direction is better
_MIN = re.compile(
    "loss|error|err|perplexity|ppl|mse|mae|rmse|mape|msle|nll|nlp|bpc|bpd|cer|wer|fid|divergence|kl|regret|crossentropy|bce"
)
_MAX = re.compile(
    "acc|accuracy|auc|auroc|auprc|precision|recall|f1|f1score|fbeta|bleu|rouge|r2|iou|dice|map|psnr|ssim|likelihood|"
    "reward|return|score|similarity|throughput"
)


def check_monitor(owner: str, monitor: Any) -> None:
    """Checks for the name of a metric, or a function of metrics.

    Raises:
        TypeError: for anything else.
    """
    if (isinstance(monitor, str) and monitor) or callable(monitor):
        return
    raise TypeError(
        f"{owner}: monitor must be the name of a metric, such as 'val_loss', or a function of Metrics, got "
        f"{shown(monitor)}."
    )


def resolve_mode(owner: str, monitor: Any, mode: str) -> str:
    """Returns "min" or "max"; for "auto", the last word of the metric's name with a known direction decides.

    Raises:
        ValueError: for an unknown mode, or if no word of the name has a known direction.
    """
    check_monitor(owner, monitor)
    check_choice(owner, "mode", mode, ("auto", "min", "max"))
    if mode != "auto":
        return mode
    if isinstance(monitor, str):
        for word in reversed(re.split(r"[^a-z0-9]+", monitor.lower())):
            if _MIN.fullmatch(word):
                return "min"
            if _MAX.fullmatch(word):
                return "max"
    what = f"the name {monitor!r}" if isinstance(monitor, str) else "a function"
    raise ValueError(
        f"{owner}: mode='auto' cannot tell from {what} whether lower or higher is better. "
        "Pass mode='min' or mode='max'."
    )


def infer_mode_or_none(name: str) -> str | None:
    """Returns "min" or "max" if a metric's name implies the direction, else None."""
    try:
        return resolve_mode("", name, "auto")
    except ValueError:
        return None
