"""Kills a run of digits at random moments, starts it again until it ends, and compares it with one never killed.

    python benchmarks/kills.py --kills 100 [--signal TERM]

The run has dropout, batch normalisation, shuffling, early stopping with best weights, plateau, averaged weights, CSV
and JSON logs, exports, and is saved every 7 steps. Half of the moments are spread evenly over a process's life, and
half lie within saves. Runs take turns in executor and data until all kills are made. It prints where the kills hit, how
many processes it took, and what differs in the end: parameters, optimizer state, callback states, histories and each
file's bytes. The exit status is 1 where anything does.
"""

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from loop._killing import PLACES, Kill, at_random, differences, in_saves, killed_run, whole_run  # noqa: E402

RUNS = list(itertools.product(("looped", "stepped"), ("arrays", "stream")))


def main():
    parser = argparse.ArgumentParser(description="Kills a run and compares what it comes to.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--save-freq", type=int, default=7, help="steps between saves")
    parser.add_argument("--seed", type=int, default=None, help="of the moments")
    args = parser.parse_args()
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(10**6)
    rng, signum = random.Random(seed), getattr(signal, f"SIG{args.signal}")
    hit, lives, longest, unequal, runs, seconds = Counter(), 0, 0.0, [], 0, {}
    print(f"SIG{args.signal}, seed {seed}, saved every {args.save_freq} steps", flush=True)
    with tempfile.TemporaryDirectory(prefix="jaxcb_kills_") as parent:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(parent) / "jax_cache"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

        def kills(life_time, left):
            for _ in range(left):
                yield Kill(in_saves(rng, 4) if rng.random() < 0.5 else at_random(rng, life_time), signum)

        while hit.total() < args.kills:
            executor, data = RUNS[runs % len(RUNS)]
            options = ("--executor", executor, "--data", data, "--save-freq", str(args.save_freq))
            whole, killed = Path(parent) / f"{executor}_{data}", Path(parent) / f"run_{runs}"
            if whole not in seconds:
                whole_run(whole, options)  # compiles
                began = time.monotonic()
                whole_run(whole.with_name(f"{whole.name}_again"), options)
                seconds[whole] = time.monotonic() - began
            found = killed_run(killed, options, kills(seconds[whole], args.kills - hit.total()))
            differs = differences(whole, killed)
            hit, lives, longest = hit + found.places, lives + found.lives, max(longest, found.longest)
            unequal += [f"run {runs} ({executor}, {data}): {line}" for line in differs]
            runs += 1
            where = ", ".join(f"{place} {found.places[place]}" for place in PLACES)
            print(f"  {executor:8} {data:7} {where}; {'equal' if not differs else 'UNEQUAL'}", flush=True)
    print(f"{hit.total()} kills in {runs} runs, {lives - runs} restarts")
    for place in PLACES:
        print(f"  {place:10} {hit[place]:4}")
    if signum == signal.SIGTERM:
        print(f"at most {longest:.1f} s from the signal to the end of a process")
    print(f"{len(unequal)} differences from the runs that were never killed")
    for line in unequal:
        print(f"  {line}")
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
