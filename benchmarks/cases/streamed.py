"""Batches from the host: against a compiled call a step, and against a scan over stacks of batches."""

from _case import Case, same_losses
from _networks import NETWORKS

from cases._lazily import lazily

CASES = [
    Case(
        f"{short}-streamed",
        f"{name}, streamed numpy batches, four callbacks",
        {
            "jaxcb": lazily("_ours", "contestant", NETWORKS[name], streamed=True),
            "jit loop by hand": lazily("_hand", "steps", NETWORKS[name], streamed=True),
            "chunked scan by hand": lazily("_hand", "chunks", NETWORKS[name], 32),
        },
        same_losses(),
        least=0.95,
        epochs=NETWORKS[name].epochs,
        quick=short == "32",
    )
    for name, short in (("32-32-10", "32"), ("784-128-10", "784"))
]
