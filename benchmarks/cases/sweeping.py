"""Sixty-four runs with early stopping: a sweep against loops by hand, and repacked against not repacked."""

from collections.abc import Callable

from _case import Case, NotTheSame, Outcomes

from cases._lazily import lazily


def _same_ends(within: int, loss: float) -> Callable[[Outcomes], str]:
    """Nearly all members stop at the same epoch, and reach the same loss.

    Programs round differently, and Adam makes much of it, so that a decision near a tie may fall otherwise.
    """

    def check(outcomes: Outcomes) -> str:
        base, *others = outcomes.values()
        members, apart, worst = len(base["each"]), 0, 0.0
        for other in others:
            apart = max(apart, sum(a != b for a, b in zip(base["each"], other["each"], strict=True)))
            mean = sum(base["best"]) / members
            worst = max(worst, abs(sum(other["best"]) / members / mean - 1))
        if apart > within or worst > loss:
            raise NotTheSame(f"{apart} of {members} members end elsewhere, the mean best loss differs by {worst:.1%}.")
        return f"{members - apart} of {members} members end at the same epoch, mean best loss to {worst:.1%}"

    return check


CASES = [
    Case(
        "sweep-jit",
        "64 members on digits, early stopping with best weights; programs from the compilation cache",
        {
            "jaxcb._src.sweep.sweep.sweep, a device a core": lazily("_sweeps", "swept", strategy="shard", cores=2),
            "jaxcb._src.sweep.sweep.sweep, one device": lazily("_sweeps", "swept", strategy="vmap"),
            "64 jit loops by hand": lazily("_sweeps", "by_hand", compiled=False),
        },
        _same_ends(8, 0.03),
        against=("64 jit loops by hand",),
        least=10.0,
        rounds=5,
    ),
    Case(
        "sweep-compiled",
        "the same, against an early-stopping loop that is compiled as a whole, a member after another",
        {
            "jaxcb._src.sweep.sweep.sweep, a device a core": lazily("_sweeps", "swept", strategy="shard", cores=2),
            "jaxcb._src.sweep.sweep.sweep, one device": lazily("_sweeps", "swept", strategy="vmap"),
            "64 compiled loops by hand": lazily("_sweeps", "by_hand", compiled=True),
        },
        _same_ends(8, 0.03),
        against=("64 compiled loops by hand",),
        least=0.9,
    ),
    Case(
        "sweep-repacked",
        "64 members that end at widely different epochs (3 to 96): repacked, and not",
        {
            "repacked": lazily("_sweeps", "staggered", strategy="vmap", repack=None),
            "not repacked": lazily("_sweeps", "staggered", strategy="vmap", repack=False),
        },
        _same_ends(0, 1e-3),
        least=1.2,
        rounds=5,
    ),
]
