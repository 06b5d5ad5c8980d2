"""What callbacks cost inside someone else's compiled program: PPO with and without them, per update."""

from _case import Case, NotTheSame, Outcomes, same_losses

from cases._lazily import lazily


def _check(outcomes: Outcomes) -> str:
    said = same_losses(2 * 4)(outcomes)
    dispatches = {outcome["dispatches"] for outcome in outcomes.values()}
    if len(dispatches) > 1:
        raise NotTheSame(f"dispatches differ: {dispatches}")
    kernels = " and ".join(str(outcome["kernels"]) for outcome in outcomes.values())
    return f"{said}, one dispatch a turn, {kernels} kernels in the program"


CASES = [
    Case(
        "ppo-scan", "PPO on CartPole, four seeds by vmap in one program, four callbacks in jc.scan",
        {
            "jc.scan": lazily("_ppo", "contestant", callbacks=True),
            "lax.scan without callbacks": lazily("_ppo", "contestant", callbacks=False),
        },
        _check, most=1.03, rounds=15,
    ),
]  # fmt: skip
