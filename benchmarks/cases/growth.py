"""Whether the cost of callbacks stays as it is while a run grows: ten times the epochs, ten times the steps."""

import time
from typing import Any

from _case import Case, NotTheSame, Outcomes
from _networks import NETWORKS, Network
from _race import Baton

NETWORK = NETWORKS["32-32-10"]
EPOCHS = 20


class _Clock:
    """A baton that notes when epochs end."""

    turns = 1

    def __init__(self, epochs: int, every: int) -> None:
        self.total, self.epochs = epochs, every
        self.ends: list[float] = []

    def hand_on(self) -> None:
        self.ends.append(time.perf_counter())


def _per_step(network: Network, epochs: int) -> Any:
    """Microseconds a step in the last fifth of a run that is so long; what its compiling took is not in them."""

    def train(baton: Baton) -> dict[str, Any]:
        import _ours

        clock = _Clock(epochs, epochs // 5)
        did = _ours.contestant(network)(clock)
        return did | {"measured": (clock.ends[-1] - clock.ends[-2]) / (epochs // 5 * network.steps) * 1e6}

    return train


def _all_steps(outcomes: Outcomes) -> str:
    few, *more = sorted(outcome["steps"] for outcome in outcomes.values())
    if any(many != 10 * few for many in more):
        raise NotTheSame(f"{few} steps and {more}, expected ten times as many.")
    return f"{few:,} steps against {10 * few:,}"


def _case(name: str, title: str, network: Network, epochs: int) -> Case:
    return Case(
        name, f"32-32-10, four callbacks: a step at the end of a run of {title}",
        {title: _per_step(network, epochs), "a tenth": _per_step(NETWORK, EPOCHS)},
        _all_steps, most=1.1, unit="µs", fresh=True,
    )  # fmt: skip


CASES = [
    _case("ten-times-epochs", "ten times the epochs", NETWORK, 10 * EPOCHS),
    _case("ten-times-steps", "ten times the steps an epoch", NETWORK._replace(rows=10 * NETWORK.rows), EPOCHS),
]
