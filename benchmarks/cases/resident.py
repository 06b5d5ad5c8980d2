"""Arrays on the device: against a scan written by hand, and against Keras."""

from typing import Any

from _case import Case, same_accuracy, same_losses
from _networks import NETWORKS

from cases._lazily import lazily

EXECUTIONS = (8, 32, 64, 128)  # of Keras's steps_per_execution, the best of which counts


def _ours(name: str, five: bool) -> Any:
    return lazily("_ours", "contestant", NETWORKS[name], "five" if five else "four")


def _scan(name: str, saves: bool) -> Any:
    return lazily("_hand", "scan", NETWORKS[name], saves=saves)


def _keras(name: str, five: bool, steps_per_execution: int = 1) -> Any:
    return lazily("_keras", "contestant", NETWORKS[name], five=five, steps_per_execution=steps_per_execution)


def _limit(name: str, saves: bool) -> dict[str, Any]:
    """What the machine does without any callback: how far ahead of the others one can be."""
    return {"scan by hand, which is the limit": _scan(name, saves)}


def _cases(name: str, short: str, goals: dict[str, float]) -> list[Case]:
    network = NETWORKS[name]
    how: dict[str, Any] = {"epochs": network.epochs}
    quick = name == "32-32-10"
    cases = [
        Case(
            f"{short}-bare", f"{name}, resident, no callbacks, no bar",
            {
                "jaxcb": lazily("_ours", "contestant", network, "none", verbose=0),
                "jaxcb, four callbacks": lazily("_ours", "contestant", network, "four", verbose=0),
                "jaxcb, four, bar": _ours(name, False),
                "scan by hand": _scan(name, False),
            },
            same_losses(), against=("scan by hand",), **how,
        ),
        Case(
            f"{short}-scan", f"{name}, resident, four callbacks",
            {"jaxcb": _ours(name, False), "scan by hand": _scan(name, False)},
            same_losses(), least=goals["scan"], quick=True, **how,
        ),
        Case(
            f"{short}-scan-saves", f"{name}, resident, five callbacks",
            {"jaxcb": _ours(name, True), "scan by hand with Orbax": _scan(name, True)},
            same_losses(), least=goals["saves"], quick=quick, **how,
        ),
        Case(
            f"{short}-keras", f"{name}, resident, five callbacks",
            {"jaxcb": _ours(name, True), "Keras": _keras(name, True), **_limit(name, True)},
            same_accuracy(0.05), against=("Keras",), least=goals["keras"], quick=quick,
            epochs=max(1, network.epochs // 4),
        ),
    ]  # fmt: skip
    if "keras four" in goals:
        cases.append(
            Case(
                f"{short}-keras-four",
                f"{name}, resident, four callbacks",
                {"jaxcb": _ours(name, False), "Keras": _keras(name, False), **_limit(name, False)},
                same_accuracy(0.05),
                against=("Keras",),
                least=goals["keras four"],
                **how,  # turns as long as beside the scan: to be woken up costs a run with callbacks more than a loop
                rounds=5,
            )
        )
    if "keras best" in goals:
        several = {f"Keras, {n} steps per execution": _keras(name, True, n) for n in EXECUTIONS}
        cases.append(
            Case(
                f"{short}-keras-best",
                f"{name}, resident, five callbacks",
                {"jaxcb": _ours(name, True), **several, **_limit(name, True)},
                same_accuracy(0.05),
                against=tuple(several),
                least=goals["keras best"],
                **how,
                rounds=5,
            )
        )
    return cases


CASES = [
    *_cases("32-32-10", "32", {"scan": 0.90, "saves": 0.95, "keras": 15, "keras four": 25, "keras best": 4}),
    *_cases("784-128-10", "784", {"scan": 0.97, "saves": 0.97, "keras": 2}),
]
