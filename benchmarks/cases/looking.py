"""What it costs to look inside a step and to log what is there: the same run with and without."""

from typing import Any

from _case import Case, same_losses
from _networks import NETWORKS

from cases._lazily import lazily

NETWORK = NETWORKS["784-128-10"]


def _probed(executor: str) -> Case:
    def none() -> Any:
        return lazily("_ours", "contestant", NETWORK, "none", verbose=0, executor=executor)

    return Case(
        f"probe-{executor}", f"784-128-10, {executor}, a probe of the gradients' norm at every step",
        {
            "every step": lazily("_ours", "probed", NETWORK, 1, executor),
            "every 100 steps": lazily("_ours", "probed", NETWORK, 100, executor),
            "none": none(),
            "none again": none(),  # what it differs by is noise
        },
        same_losses(), against=("none",), epochs=NETWORK.epochs,
    )  # fmt: skip


CASES = [
    _probed("looped"),
    _probed("stepped"),
    Case(
        "tensorboard", "784-128-10, TensorBoard's scalars at every step",
        {
            "each step": lazily("_ours", "contestant", NETWORK, "TensorBoard, each step", verbose=0),
            "each epoch": lazily("_ours", "contestant", NETWORK, "TensorBoard", verbose=0),
            "with histograms": lazily("_ours", "contestant", NETWORK, "TensorBoard, histograms", verbose=0),
            "none": lazily("_ours", "contestant", NETWORK, "none", verbose=0),
        },
        same_losses(), against=("none",), epochs=NETWORK.epochs,
    ),
]  # fmt: skip
