"""Runs everything side by side: jaxcb, what one would write by hand, Keras and Lightning.

    python benchmarks/bench.py [--quick] [--only NAME ...] [--rounds 7] [--list] [--save]
    python benchmarks/bench.py --quick --beside ../before     # this checkout beside another one, ours alone

`make bench` installs the others in an environment of their own, runs all cases and writes benchmarks/results.md,
benchmarks/results.json and docs/speed.png. Contestants take turns, a process each; a ratio is of medians over rounds,
with the quartiles of the ratios within a round. Before that a case's check compares what the contestants did.
"""

import argparse
import os
import signal
import statistics
import sys
import time
import traceback
from pathlib import Path

from _case import Case, NotTheSame
from _race import Baton, Failed, Terminal, run, run_trees
from _results import FOUND, Row, alone, machine, save, table

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TERM"] = "xterm-256color"  # what draws a bar wants one
os.environ["KERAS_BACKEND"] = "jax"


def contestant(case: Case, name: str, turns: int) -> None:
    """The life of a contestant's process."""
    baton = Baton(turns, case.epochs)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    sys.stdout = Terminal()
    train = case.contestants[name]
    assert callable(train)
    baton.take()
    baton.end(train(baton))


def beside(cases: list[Case], other: Path, rounds: int) -> int:
    """Prints how fast this checkout is, as a ratio to another one: above 1 where this one is faster."""
    for case in cases:
        if case.fresh or not callable(case.contestants[case.ours]):
            continue
        taken = run_trees(case, {"this": Path(__file__).parents[1], "other": other}, rounds=rounds)
        ratio = statistics.median(taken["other"]) / statistics.median(taken["this"])
        low, _, high = statistics.quantiles(b / a for a, b in zip(taken["this"], taken["other"], strict=True))
        print(
            f"{case.name:24} {ratio:.3f}   (quartiles within a round {low:.3f} to {high:.3f}, {rounds} rounds)",
            flush=True,
        )
    return 0


def main() -> int:
    """Measures what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the quick part, with fewer rounds")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these cases alone")
    parser.add_argument("--rounds", type=int, default=None, help="counted ones (7, or 3 with --quick)")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--save", action="store_true", help="write results.md, results.json and docs/speed.png")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="compare with another checkout instead, ours alone")
    parser.add_argument("--contestant", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    from cases import CASES

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # contestants are stopped processes: none is left behind

    if args.contestant:
        name, who, turns = args.contestant
        contestant(CASES[name], who, int(turns))
        return 0
    unknown = [name for name in args.only or () if name not in CASES]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}")
    chosen = [CASES[n] for n in args.only] if args.only else [c for c in CASES.values() if c.quick or not args.quick]
    about = machine()
    chosen = [case for case in chosen if case.backend in (None, about["backend"])]
    if args.list:
        print("\n".join(f"{case.name:24} {case.title}" for case in chosen))
        return 0
    if args.beside:
        return beside(chosen, args.beside.resolve(), args.rounds or 15)
    rounds = args.rounds or (3 if args.quick else 7)
    rows, began = [], time.monotonic()
    for case in chosen:
        at = time.monotonic()
        try:
            race = run(case, rounds=min(rounds, case.rounds or rounds))
            row = Row.of(case, race.taken, race.cpu, check=case.check(race.outcomes))
        except (NotTheSame, Failed) as error:
            row = Row.failed(case, f"{type(error).__name__}: {error}")
        except Exception:
            row = Row.failed(case, traceback.format_exc())
        rows.append(row)
        print(f"{row.line()}   ({time.monotonic() - at:.0f} s)", flush=True)
    print(f"\n{table(rows)}\n\n{len(rows)} cases in {time.monotonic() - began:.0f} s")
    if args.save:
        if args.only and FOUND.exists():  # what was not measured now stays as it was found
            rows, about = alone(rows, about)
        new = {row.name: row for row in rows}
        save([new[name] for name in CASES if name in new], about)
    return 1 if any(row.error for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
