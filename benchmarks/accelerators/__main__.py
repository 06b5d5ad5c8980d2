"""Compiles training programs for accelerators that this machine does not have, and compares them with loops by hand.

    make accelerators                                   # all cases; saves the results, and renews the table in the docs
    python benchmarks/accelerators --only "H100 | mlp"  # those whose name contains the text
    python benchmarks/accelerators --list

With `--save` a case is saved as soon as it is compiled, so an interrupted run continues with `--only` and the rest.

Compiling is not running: nothing here measures how fast a program is. It shows what XLA has made of it: how often a
GPU would wait for the host, how many kernels a step has, what is copied, transferred and exchanged, and how much
memory it needs. A check that does not hold is printed as MISSED with its figures. The exit status is 1 if a program
cannot be compiled, and with `--recorded` also if a step has more of anything than the saved results say.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile

import checks
import targets

PLATFORMS = ("tpu", "cuda")


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="cases whose names contain any of these"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--save", action="store_true", help="save the results, in place of those of the same cases")
    parser.add_argument("--recorded", action="store_true", help="compare with the saved results instead of by hand")
    parser.add_argument("--text", default="", help="a directory to write the compiled programs to")
    parser.add_argument("--platform", choices=PLATFORMS, help=argparse.SUPPRESS)  # a process of the command itself
    args = parser.parse_args()
    if args.list:
        import cases

        print("\n".join(case.key for case in cases.cases()))
        return 0
    if args.platform:
        import measure

        measure.run(args.platform, args.only, args.text)
        return 0
    return _all(args)


def _all(args: argparse.Namespace) -> int:
    """Compiles for each platform in a process of its own, which frees its memory, and prints the results."""
    absent = [sentence for sentence in map(targets.missing, PLATFORMS) if sentence is not None]
    if absent:
        print("\n".join(absent), file=sys.stderr)
        return 2
    rows = []
    for platform in PLATFORMS:
        command = [sys.executable, __file__.removesuffix("/__main__.py"), "--platform", platform]
        command += ["--only", *args.only, "--text", args.text]
        # the compilers complain that there is no such device; their words matter only if the process fails
        with (
            tempfile.TemporaryFile("w+") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith("{"):
                    print(line, end="")
                    continue
                row = checks.Row.of(json.loads(line))
                rows.append(row)
                if args.save:  # at once: what was compiled before an interrupt is kept
                    _save(row)
                print(f"{row.key}: {'; '.join(['MISSED', *row.missed()]) if row.missed() else 'yes'}", flush=True)
            process.wait()
            log.seek(0)
            said = log.read()
        if process.returncode:
            print(said, file=sys.stderr)
            print(f"The process that compiles for {platform} ended with status {process.returncode}.", file=sys.stderr)
            return 2
    if not rows:
        print(
            f"No case has a name that contains {' or '.join(map(repr, args.only))}. `--list` prints the names.",
            file=sys.stderr,
        )
        return 2
    print()
    print(checks.markdown(rows))
    if args.save:
        print(f"Saved to {checks.RESULTS.name}.")
    if args.recorded:
        more = checks.more_than(rows, checks.Results.load().rows)
        print("\n".join(["", *(more or ["No step has more of anything than was recorded."])]))
        return int(bool(more))
    return int(any(row.error for row in rows))


def _save(row: checks.Row) -> None:
    """Saves a row in place of that of the same case, and leaves out cases that there are no longer."""
    import cases

    names = ("jaxcb", "jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda12-pjrt")
    versions = {name: importlib.metadata.version(name) for name in names}
    saved = checks.Results.load().rows if checks.RESULTS.exists() else []
    rows = {old.key: old for old in saved} | {row.key: row}
    checks.Results(versions, [rows[case.key] for case in cases.cases() if case.key in rows]).save()


if __name__ == "__main__":
    sys.exit(main())
