"""Which way is better: lower or higher, by the words of a metric's name."""

import re
from typing import Any

from jaxcb._check import one_of

# the words that tell which way is better
_MIN = re.compile(
    "loss|error|err|perplexity|ppl|mse|mae|rmse|mape|msle|nll|nlp|bpc|bpd|cer|wer|fid|divergence|kl|regret|crossentropy|bce"
)
_MAX = re.compile(
    "acc|accuracy|auc|auroc|auprc|precision|recall|f1|f1score|fbeta|bleu|rouge|r2|iou|dice|map|psnr|ssim|likelihood|"
    "reward|return|score|similarity|throughput"
)


def resolve_mode(owner: str, monitor: Any, mode: str) -> str:
    """Returns "min" or "max"; "auto" follows the words of the name, from the last one back.

    Raises:
        ValueError: for another mode, or where the name does not tell.
    """
    one_of(owner, "mode", mode, ("auto", "min", "max"))
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


def told_mode(name: str) -> str | None:
    """Returns "min" or "max" where a name tells which way is better, else None."""
    try:
        return resolve_mode("", name, "auto")
    except ValueError:
        return None
