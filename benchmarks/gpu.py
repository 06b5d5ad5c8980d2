"""The benchmarks for a GPU: `make bench-gpu`, in at most ten minutes.

    python benchmarks/gpu.py [--save] [--minutes 10] [--only PART ...] [--anyway]

The parts, in this order; those that do not fit into the time are named as left out:

    cases    resident, streamed, saved, sweep, first step, memory and Lightning (benchmarks/bench.py lists the titles)
    resume   with deterministic kernels, a run in two parts ends bit for bit as one at once
    trace    how long the GPU waits between kernels, for each kind of loop over steps and for the scan by hand

`--save` writes benchmarks/gpu-CARD.md and .json. `--anyway` runs without a GPU, to try the command itself.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share the GPU
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HERE = Path(__file__).parent
PARTS = ("cases", "resume", "trace")
# rounds, and an estimate of the seconds, with which a case is left out if they are not left
CASES = {
    "gpu-resident": (5, 70),
    "gpu-streamed": (5, 70),
    "gpu-saved": (3, 40),
    "gpu-sweep": (3, 40),
    "first-step": (2, 90),
    "memory": (2, 60),
    "digits-lightning": (2, 100),
}
KINDS = {"jaxcb": None, "jaxcb, dynamic loop": 0, "jaxcb, blocks of 1": 1, "jaxcb, blocks of 8": 8}
KINDS |= {"jaxcb, blocks of 32": 32}
LEFT_OUT = "left out"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def card() -> tuple[str | None, str]:
    """Returns the name of the GPU, or None and what is missing."""
    import jax

    try:
        return jax.devices("gpu")[0].device_kind, ""
    except RuntimeError as error:
        return None, (
            f"JAX finds no GPU here: {str(error).splitlines()[0]}\n"
            "`make bench-gpu` needs an NVIDIA GPU, its driver (`nvidia-smi` must list the GPU), and the packages of "
            "requirements/bench-gpu.txt, which it installs itself. `make accelerators` needs no GPU: it compiles for "
            "one. To try the command itself on the CPU: python benchmarks/gpu.py --anyway"
        )


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write gpu-CARD.md and gpu-CARD.json")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all parts (10)")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="these parts alone")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, help="these cases alone")
    parser.add_argument("--anyway", action="store_true", help="also without a GPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # a process of the command itself
    args = parser.parse_args()
    if args.part:
        print(json.dumps(resume() if args.part == "resume" else traced(args.part)))
        return 0
    name, missing = card()
    if name is None and not args.anyway:
        print(missing, file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * args.minutes
    found: dict[str, Any] = {"card": name or "no GPU"}
    print(f"{found['card']}; {args.minutes:g} minutes", flush=True)
    if "cases" in args.only:
        found["cases"] = _cases(args.cases, end)
    if "resume" in args.only:
        found["resume"] = _process("resume", end, XLA_FLAGS=f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}")
        print(f"resume: {found['resume']}", flush=True)
    if "trace" in args.only:
        found["trace"] = {}
        for kind in (*KINDS, "scan by hand"):
            found["trace"][kind] = _process(kind, end)
            print(f"trace of {kind}: {found['trace'][kind]}", flush=True)
    text = as_text(found)
    print(f"\n{text}")
    if args.save and name is not None:
        base = HERE / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"
        base.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        base.with_suffix(".md").write_text(text + "\n")
        print(f"\nSaved to {base.name}.md and {base.name}.json.")
    results = [*found.get("cases", {}).values(), *found.get("trace", {}).values(), found.get("resume")]
    failed = [x for x in results if isinstance(x, str) and not x.startswith(LEFT_OUT)]
    return int(bool(failed) or bool(isinstance(results[-1], dict) and results[-1]["different"]))


def _cases(names: list[str], end: float) -> dict[str, Any]:
    """Runs the cases as `bench.py` does, as long as there is time."""
    from _case import NotTheSame
    from _race import Failed, run
    from _results import Row
    from cases import CASES as ALL

    found: dict[str, Any] = {}
    for name in names:
        rounds, seconds = CASES[name]
        if time.monotonic() + seconds > end:
            found[name] = f"{LEFT_OUT}: there was no time left"
        else:
            try:
                race = run(ALL[name], rounds=rounds)
                row = Row.of(ALL[name], race.taken, race.cpu, check=ALL[name].check(race.outcomes))
                print(row.line(), flush=True)
                found[name] = row._asdict()
                continue
            except (NotTheSame, Failed) as error:
                found[name] = f"{type(error).__name__}: {error}"
        print(f"{name}: {found[name]}", flush=True)
    return found


def _process(part: str, end: float, **environment: str) -> Any:
    """Runs a part in a process of its own. Returns what it found, or what went wrong."""
    left = end - time.monotonic()
    if left < 20:
        return f"{LEFT_OUT}: there was no time left"
    command = [sys.executable, __file__, "--part", part]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=left, env=os.environ | environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{LEFT_OUT}: it did not end in the time that was left"
    if ran.returncode:
        return f"Error: {ran.stderr.strip()[-1500:]}"
    return json.loads(ran.stdout.splitlines()[-1])


def resume() -> dict[str, Any]:
    """Trains at once, and in two runs of which the second resumes. Compares all arrays of the state bit for bit."""
    import jax
    import numpy as np
    import optax
    from _networks import NETWORKS, loss_fn

    import jaxcb as jc

    network = NETWORKS["784-1024-1024-10"]
    training, validation = network.data()

    def run(directory: str, epochs: int) -> Any:
        return jc.fit(
            network.params(), loss_fn, training, optimizer=optax.adam, learning_rate=1e-3, epochs=epochs,
            batch_size=network.batch_size, validation_data=validation, run_dir=directory, resume=True, verbose=0,
            callbacks=[jc.EarlyStopping(patience=50, restore_best_weights=True), jc.ReduceLROnPlateau(patience=1)],
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        whole = run(one, 8)
        run(two, 4)
        resumed = run(two, 8)
    pairs = list(zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True))
    plain = [(a, b) for a, b in pairs if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key)]
    different = sum(not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in plain)
    return {
        "arrays": len(plain),
        "different": different,
        "steps": int(resumed.state.step),
        "deterministic": DETERMINISTIC in os.environ.get("XLA_FLAGS", ""),
    }


def traced(kind: str) -> dict[str, Any]:
    """Traces a run of a few epochs with `jax.profiler`, after a run that compiles."""
    import jax
    from _networks import NETWORKS
    from _trace import busy, read

    network, epochs = NETWORKS["784-1024-1024-10"], 4
    if kind == "scan by hand":
        run = functools.partial(_scan, network, epochs)
    else:
        import _ours

        run = functools.partial(_ours.fit, network, "four", epochs=epochs, verbose=0, block=KINDS[kind])
    run()
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            run()
        found = busy(read(Path(directory)))
    if found is None:
        return {"kernels": 0, "note": "the trace has no kernels of a GPU"}
    return {**found._asdict(), "kernels_per_step": found.kernels / (epochs * network.steps)}


def _scan(network: Any, epochs: int) -> None:
    import _hand

    _hand.scan(network)(_hand.Alone(epochs))


def as_text(found: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    from _results import Row, table

    lines = [f"# {found['card']}", ""]
    rows = [Row(**row) for row in found.get("cases", {}).values() if isinstance(row, dict)]
    if rows:
        lines += [table(rows), ""]
        lines += [f"- {row.line()}" for row in rows] + [""]
    lines += [f"- {name}: {row}" for name, row in found.get("cases", {}).items() if isinstance(row, str)]
    if "resume" in found:
        what = found["resume"]
        if isinstance(what, dict):
            how = "with deterministic kernels" if what["deterministic"] else "with default kernels"
            what = f"{what['different']} of {what['arrays']} arrays differ after {what['steps']} steps, {how}"
        lines += [f"A run in two parts beside one at once: {what}.", ""]
    if "trace" in found:
        lines += ["| loop | kernels a step | idle | gaps over 20 µs | longest gap, µs |", "|---|---|---|---|---|"]
        for kind, what in found["trace"].items():
            if isinstance(what, dict) and what["kernels"]:
                cells = f"{what['kernels_per_step']:.1f} | {what['idle']:.1%} | {what['gaps']} | {what['longest']:.0f}"
            else:
                cells = f"{what['note'] if isinstance(what, dict) else what} | | |"
            lines.append(f"| {kind} | {cells} |")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    sys.exit(main())
