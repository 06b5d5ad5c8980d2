"""What more callbacks cost: ten pure ones that act at every batch."""

from _case import Case, same_losses
from _networks import NETWORKS

from cases._lazily import lazily

NETWORK = NETWORKS["784-128-10"]
CASES = [
    Case(
        "784-ten-more",
        "784-128-10, ten extra callbacks with on_batch_end",
        {
            "jaxcb, ten more": lazily("_ours", "contestant", NETWORK, "four and ten"),
            "jaxcb": lazily("_ours", "contestant", NETWORK),
        },
        same_losses(),
        least=0.97,
        epochs=NETWORK.epochs,
    )
]
