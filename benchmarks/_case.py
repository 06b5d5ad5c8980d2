"""What a benchmark is: contestants that do the same work, what checks that they did, and what is to be reached."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Outcomes = Mapping[str, dict[str, Any]]  # contestant -> what it says that it did


class NotTheSame(Exception):
    """Contestants did not do the same work, so their times say nothing."""


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: for `--only`.
        title: what is trained, and how.
        contestants: name -> function of a `Baton`, run in a process of its own; the first one is ours. It returns what
            it did, as JSON. A text is Python code for a bare interpreter, which prints such a dict itself.
        check: takes what all of them did, returns a sentence that says in what they agree, or raises `NotTheSame`.
        least: the ratio of speeds, ours to the best of the others, that is to be reached; None where `most` is.
        most: the ratio of what ours needs (seconds, bytes) to what the best of the others does; None where `least` is.
            With neither, the case informs.
        against: contestants to be compared with; None for all others.
        unit: of what is measured.
        epochs: of a turn.
        fresh: whether each round is a new process, which says itself what it measured, as `"measured"`.
        rounds: at most so many; None for as many as asked for.
        quick: whether it belongs to the quick part.
        backend: where it runs; None for everywhere.
    """

    name: str
    title: str
    contestants: Mapping[str, Callable[..., dict[str, Any]] | str]
    check: Callable[[Outcomes], str]
    least: float | None = None
    most: float | None = None
    against: tuple[str, ...] | None = None
    unit: str = "s"
    epochs: int = 1
    fresh: bool = False
    rounds: int | None = None
    quick: bool = False
    backend: str | None = None

    @property
    def ours(self) -> str:
        """The contestant that is compared."""
        return next(iter(self.contestants))

    @property
    def others(self) -> tuple[str, ...]:
        """Those that it is compared with."""
        return self.against or tuple(name for name in self.contestants if name != self.ours)


def same_losses(epochs: int = 4, rtol: float = 2e-4) -> Callable[[Outcomes], str]:
    """All trained on the same batches: the losses of the first epochs are equal, and so is the number of steps.

    Later ones drift apart, since Adam makes much of what programs round differently.
    """

    def check(outcomes: Outcomes) -> str:
        same_work(outcomes)
        base, *others = (outcome["losses"][:epochs] for outcome in outcomes.values())
        worst = max(abs(a / b - 1) for other in others for a, b in zip(base, other, strict=True))
        if not worst <= rtol:
            raise NotTheSame(f"losses differ by {worst:.1e}, {rtol:.0e} is allowed: {_shown(outcomes, 'losses')}")
        return f"losses of {epochs} epochs equal to {worst:.0e}{_counts(outcomes)}"

    return check


def same_accuracy(within: float) -> Callable[[Outcomes], str]:
    """All did the same epochs and steps, and learned as much."""

    def check(outcomes: Outcomes) -> str:
        same_work(outcomes)
        found = [outcome["accuracy"] for outcome in outcomes.values()]
        if not max(found) - min(found) <= within:
            raise NotTheSame(f"accuracies differ by more than {within}: {_shown(outcomes, 'accuracy')}")
        return f"accuracies {min(found):.3f} to {max(found):.3f}{_counts(outcomes)}"

    return check


def same_work(outcomes: Outcomes) -> str:
    """All did as many steps."""
    if len({outcome["steps"] for outcome in outcomes.values()}) > 1:
        raise NotTheSame(f"steps differ: {_shown(outcomes, 'steps')}")
    return f"{next(iter(outcomes.values()))['steps']:,} steps each"


def _counts(outcomes: Outcomes) -> str:
    steps = next(iter(outcomes.values()))["steps"]
    saves = {str(outcome["saves"]) for outcome in outcomes.values() if "saves" in outcome}
    return f", {steps:,} steps" + (f", saves {' and '.join(sorted(saves))}" if saves else "")


def _shown(outcomes: Outcomes, what: str) -> str:
    return ", ".join(f"{name} {outcome[what]}" for name, outcome in outcomes.items())
