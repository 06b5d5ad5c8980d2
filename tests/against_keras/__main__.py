"""Compares jaxcb's callbacks with the real Keras on many random streams.

    python tests/against_keras [--streams 14000] [--seed 0] [--only EarlyStopping]

Prints for each callback: streams, agreements, differences on purpose by rule, unexplained ones. Exits with 1 where
there is one of the last.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["JAX_PLATFORMS"] = "cpu"  # thousands of tiny programs
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"

import hypothesis
from against_keras import rules
from against_keras._case import KINDS, Case
from against_keras._compare import AGREES, Tally

# of all streams; what is slow or has little to vary gets fewer
SHARES = {
    "EarlyStopping": 0.34,
    "ReduceLROnPlateau": 0.30,
    "ModelCheckpoint": 0.18,
    "TerminateOnNaN": 0.06,
    "LearningRateScheduler": 0.03,
    "LearningRateScheduler with ReduceLROnPlateau": 0.04,
    "CSVLogger": 0.05,
}


def compare(kind: str, streams: int, seed: int) -> Tally:
    """Draws cases and counts what comes out."""
    tally = Tally()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=streams, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(KINDS[kind])
    def draw(case: Case) -> None:
        if tally.streams < streams:
            tally.add(case)

    draw()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description="jaxcb's callbacks against the real Keras")
    parser.add_argument("--streams", type=int, default=14_000, help="in all (14000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(KINDS), help="one comparison alone")
    given = parser.parse_args()
    total = unexplained = 0
    explaining: set[str] = set()
    for kind in [given.only] if given.only else list(KINDS):
        started = time.perf_counter()
        tally = compare(kind, max(1, round(given.streams * (1.0 if given.only else SHARES[kind]))), given.seed)
        print(f"{kind}: {tally.streams} streams ({time.perf_counter() - started:.0f} s)")
        print(f"  {tally.counts[AGREES]:6d} agree")
        for names, count in tally.explained().items():
            print(f"  {count:6d} differ on purpose: {names}")
        print(f"  {len(tally.unexplained):6d} unexplained", flush=True)
        for case, verdict in tally.unexplained[:3]:
            print(f"         {case}\n         jaxcb {verdict.ours}\n         Keras {verdict.theirs}")
        explaining |= tally.rules()
        total, unexplained = total + tally.streams, unexplained + len(tally.unexplained)
    print(f"{total} streams, {unexplained} unexplained differences")
    silent = sorted({rule.name for rule in rules.RULES if rule.bites} - explaining)
    if silent and not given.only:
        print(f"rules that explained nothing: {', '.join(silent)}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
