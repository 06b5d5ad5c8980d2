"""A small convolutional network on digits: against a loop by hand, and against Lightning."""

from _case import Case, same_accuracy, same_losses
from _networks import NETWORKS

from cases._lazily import lazily

NETWORK = NETWORKS["digits CNN"]
EPOCHS = 20  # of a whole run, with all that it compiles

CASES = [
    Case(
        "digits-jit",
        "digits CNN, resident, five callbacks",
        {
            "jaxcb": lazily("_ours", "contestant", NETWORK, "five"),
            "jaxcb, four callbacks": lazily("_ours", "contestant", NETWORK, "four"),
            "jit loop by hand": lazily("_hand", "steps", NETWORK),
            "jit loop by hand with Orbax, which is the limit": lazily("_hand", "steps", NETWORK, saves=True),
        },
        same_losses(),
        against=("jit loop by hand",),
        least=0.97,
        epochs=NETWORK.epochs,
    ),
    Case(
        "digits-lightning",
        f"digits CNN, {EPOCHS} epochs as a whole run, five callbacks",
        {
            "jaxcb": lazily("_ours", "whole_runs", NETWORK, "five", epochs=EPOCHS),
            "jaxcb, programs cached": lazily("_ours", "whole_runs", NETWORK, "five", epochs=EPOCHS, cached=True),
            "jit loop by hand, which is the limit": lazily("_hand", "whole_runs", NETWORK, epochs=EPOCHS),
            "Lightning": lazily("_lightning", "whole_runs", NETWORK, epochs=EPOCHS),
        },
        same_accuracy(0.04),
        against=("Lightning",),
        least=2.0,
    ),
]
