"""What a run costs before its first step, and at its peak: time, memory, imports."""

import json
import resource
import time
from typing import Any

from _case import Case, NotTheSame, Outcomes, same_losses
from _networks import NETWORKS, Network
from _race import Baton

SMALL, LARGE = NETWORKS["784-128-10"], NETWORKS["784-6144-6144-10"]
CONVOLUTIONS, WHOLE = NETWORKS["digits CNN"], 20  # epochs
MEMORY = ", best weights off"


def _packages() -> None:
    """Imports what is imported when it is used; tensorboardX brings torch with it, where that is installed."""
    import tensorboardX  # noqa: F401

    import jaxcb as jc

    assert jc.fit


def _timed_import(modules: str) -> str:
    """Code of an interpreter that imports nothing else."""
    return (
        "import time; began = time.perf_counter()\n"
        f"import {modules}\n"
        "took = time.perf_counter() - began\n"
        "import json; print(json.dumps({'measured': took}))"
    )


class _First:
    """A baton for a run of one turn that ends with its first epoch, and notes when."""

    def __init__(self, epochs: int = 1) -> None:
        self.epochs, self.total, self.turns = 1, epochs, epochs
        self.began, self.first = time.perf_counter(), 0.0

    def hand_on(self) -> None:
        self.first = self.first or time.perf_counter() - self.began

    def epoch_done(self, epoch: int) -> None:
        self.hand_on()


class _Once:
    """A baton for a run that is one turn."""

    def __init__(self, epochs: int) -> None:
        self.epochs = self.total = epochs

    def hand_on(self) -> None:
        """Hands nothing on."""

    def epoch_done(self, epoch: int) -> None:
        """Hands nothing on."""


def _contestant(network: Network, ours: bool, *, stretch: bool = False, **how: Any) -> Any:
    import _hand
    import _ours

    return _ours.contestant(network, **how) if ours else (_hand.stretches if stretch else _hand.scan)(network)


def _first_step(ours: bool, **how: Any) -> Any:
    """Seconds from the call, with packages, weights and data ready, to the first epoch's numbers on the host."""

    def train(baton: Baton) -> dict[str, Any]:
        import jax

        _packages()
        own = _contestant(SMALL, ours, **how)
        jax.jit(lambda x: x + jax.random.uniform(jax.random.key(0)))(1.0).block_until_ready()
        first = _First()
        did = own(first)
        return did | {"measured": first.first}

    return train


def _whole_run(ours: bool) -> Any:
    """Seconds of a whole run with the same saves, with packages, weights and data ready, compiling included."""

    def train(baton: Baton) -> dict[str, Any]:
        import _hand
        import _ours
        import jax

        _packages()
        own = _ours.contestant(CONVOLUTIONS, "five") if ours else _hand.steps(CONVOLUTIONS, saves=True)
        jax.jit(lambda x: x + jax.random.uniform(jax.random.key(0)))(1.0).block_until_ready()
        began = time.perf_counter()
        did = own(_Once(WHOLE))
        return did | {"measured": time.perf_counter() - began}

    return train


def _peak(ours: bool) -> Any:
    """Bytes at the peak above those before the run."""

    def train(baton: Baton) -> dict[str, Any]:
        import jax

        _packages()
        own = _contestant(LARGE, ours, **({"callbacks": "four, no best"} if ours else {}))
        jax.jit(lambda x: x + jax.random.uniform(jax.random.key(0)))(1.0).block_until_ready()
        before = _bytes()
        did = own(_First(4))
        return did | {"measured": (_bytes() - before) / 2**20}

    return train


def _bytes() -> float:
    """The peak so far, on the device where it tells, else of the process."""
    import jax

    told = jax.devices()[0].memory_stats() or {}
    return told.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _nothing_to_compare(outcomes: Outcomes) -> str:
    if not all(outcome["measured"] > 0 for outcome in outcomes.values()):
        raise NotTheSame(f"something took no time: {json.dumps(outcomes)}")
    return ""


CASES = [
    Case(
        "first-step", "784-128-10, four callbacks: time to the first epoch's end, compiling included",
        {
            "jaxcb": _first_step(True),
            "jaxcb, no callbacks": _first_step(True, callbacks="none"),
            "scan by hand": _first_step(False),
            "epochs in a loop by hand": _first_step(False, stretch=True),
        },
        same_losses(1), most=1.35, against=("scan by hand",), fresh=True,
    ),
    Case(
        "whole-run", f"digits CNN, {WHOLE} epochs, five callbacks: a whole run, compiling included",
        {"jaxcb": _whole_run(True), "jit loop by hand with the same saves": _whole_run(False)},
        same_losses(), most=1.25, fresh=True,
    ),
    Case(
        "memory", f"784-6144-6144-10 (43 million weights), four callbacks{MEMORY}: memory at its peak",
        {"jaxcb": _peak(True), "scan by hand": _peak(False)},
        same_losses(2), most=1.1, unit="MiB", fresh=True, rounds=5,
    ),
    Case(
        "import", "import jax, optax, jaxcb",
        {
            "import jax, optax, jaxcb": _timed_import("jax, optax, jaxcb"),
            "import jax, optax": _timed_import("jax, optax"),
            "the same, and jaxcb._src.fit.fit used": _timed_import("jax, optax, jaxcb; jaxcb._src.fit.fit"),
        },
        _nothing_to_compare, most=1.05, against=("import jax, optax",), fresh=True, quick=True,
    ),
]  # fmt: skip
