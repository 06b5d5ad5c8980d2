"""Spoils the callbacks that decide, one expression at a time, and looks which test notices.

    python tools/mutants.py [EarlyStopping ...] [--new] [--write] [--list]

A mutant turns `<` into `<=`, leaves out an addend such as `min_delta`, a `~` or one side of `&`, or makes patience one
longer. Each is made in a copy; the callback's own tests run on it, and then the comparison with Keras, until one fails.
`--write` renews `tests/mutants.md`; with `--new` only mutants that are not in it are run. Exits with 1 where one lives
that is not known to be the same as the original.
"""

import argparse
import ast
import contextlib
import dataclasses
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LIST = ROOT / "tests" / "mutants.md"
OWN, KERAS = (
    "tests/callbacks/test_",
    "tests/against_keras/test_streams.py::test_decisions_are_those_of_keras_or_differ_by_rule",
)
RULES, OPTIONS = (
    "tests/against_keras/test_streams.py::test_every_rule_explains_a_difference",
    "tests/against_keras/test_options.py",
)
REPORTS, STOPPING, GROUPS = (
    "tests/core/test_reports.py",
    f"{OWN}stopping.py",
    "tests/training/test_optimizer_groups.py",
)
TESTS = {  # what is spoilt -> the tests that should notice, the quick ones first
    "monitor": [
        "tests/callbacks/test_stale_names.py",
        f"{OWN}early_stopping.py",
        f"{OWN}reduce_lr_on_plateau.py",
        REPORTS,
        f"{KERAS}[EarlyStopping]",
        RULES,
        OPTIONS,
    ],
    "early_stopping": [f"{OWN}early_stopping.py", REPORTS, STOPPING, f"{KERAS}[EarlyStopping]", OPTIONS],
    "reduce_lr_on_plateau": [
        f"{OWN}reduce_lr_on_plateau.py",
        REPORTS,
        f"{KERAS}[ReduceLROnPlateau]",
        GROUPS,
    ],
    "model_checkpoint": [f"{KERAS}[ModelCheckpoint]", RULES, f"{OWN}model_checkpoint.py"],
    "terminate_on_nan": [f"{OWN}terminate_on_nan.py", STOPPING],
}
# Functions that check arguments, or make text: other tests are theirs
PASSED_OVER = {
    "__post_init__",
    "_check_numbers",
    "_check_cadences",
    "resolve_mode",
    "monitor_name",
    "hooks",
    "_lines",
    "_raise",
    "_remembers",
    "_asked",
}
LONGER = {"patience", "cooldown", "start_from_epoch", "save_freq", "every_n_epochs"}
FLIPPED = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
NOBODY = "**nobody**"
SAME = {  # mutants that decide as the original does, and why
    "reduce_lr_on_plateau._report: new & better -> (better)": "a value is no better than a best that has seen it",
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one expression."""

    module: str
    function: str
    before: str
    after: str
    start: int  # characters of the source
    end: int

    @property
    def name(self) -> str:
        """What tells it from others."""
        return f"{self.module}.{self.function}: {self.before} -> {self.after}"

    def of(self, source: str) -> str:
        """The source with the change."""
        return source[: self.start] + self.after + source[self.end :]


def path_of(module: str) -> Path:
    """Where a module lies in the repository."""
    return Path("jaxcb") / "_src" / "callbacks" / f"{module}.py"


def mutants(module: str) -> list[Mutant]:
    """Returns all mutants of a module, in the order of its lines; of alike ones in one function the first."""
    source = (ROOT / path_of(module)).read_text()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    found: dict[str, Mutant] = {}
    for function in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)):
        if function.name in PASSED_OVER:
            continue
        for node, after in changes(function, source):
            start, end = lines[node.lineno - 1] + node.col_offset, lines[node.end_lineno - 1] + node.end_col_offset
            mutant = Mutant(module, function.name, source[start:end], after, start, end)
            found.setdefault(mutant.name, mutant)
    return sorted(found.values(), key=lambda m: (m.start, m.end, m.after))


def changes(function: ast.FunctionDef, source: str) -> Iterator[tuple[ast.expr, str]]:
    """The expressions of a function, each with what is put in its place."""

    def text(node: ast.AST) -> str:
        return ast.get_source_segment(source, node) or ""

    for statement in function.body:
        compared = [n for n in ast.walk(statement) if isinstance(n, ast.Compare)]
        words = {n.left for n in compared if isinstance(n.comparators[0], ast.Constant) and n.comparators[0].value != 0}
        for node in ast.walk(statement):
            match node:
                case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in FLIPPED:
                    yield node, f"{text(left)} {FLIPPED[type(op)]} {text(right)}"
                case ast.BinOp(left=left, op=ast.Add() | ast.Sub()) if not isinstance(left, ast.Constant):
                    if "{" not in text(node):  # of text
                        yield node, text(left)
                case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr(), right=right):
                    yield node, f"({text(left)})"
                    yield node, f"({text(right)})"
                case ast.UnaryOp(op=ast.Invert(), operand=operand):
                    yield node, f"({text(operand)})"
                case ast.Attribute(value=ast.Name("self"), attr=name) if name in LONGER and node not in words:
                    yield node, f"(self.{name} + 1)"


class Watcher:
    """Notes the first test that fails."""

    failed: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Pytest calls it for each phase of a test."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid.removeprefix("tests/")

    def pytest_collectreport(self, report: Any) -> None:
        """Pytest calls it for each file."""
        self.pytest_runtest_logreport(report)


def killer(mutant: Mutant | None, tests: list[str]) -> str | None:
    """The first test that fails with a copy of the library in which one expression is spoilt, None where all pass.

    Runs in a process of its own that has not imported the library.
    """
    with tempfile.TemporaryDirectory() as directory, open(os.devnull, "w") as silence:
        copy = Path(directory) / "jaxcb"
        shutil.copytree(ROOT / "jaxcb", copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            file = Path(directory) / path_of(mutant.module)
            file.write_text(mutant.of(file.read_text()))
        sys.path.insert(0, directory)
        sys.dont_write_bytecode = True
        os.chdir(ROOT)
        import pytest

        watcher = Watcher()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=no", *tests], plugins=[watcher])
        import jaxcb

        if not Path(jaxcb.__file__).is_relative_to(directory):
            raise RuntimeError(f"The tests ran on {jaxcb.__file__}, not on the copy.")
        return watcher.failed or (None if code == 0 else f"pytest ends with {code!r}")


def known() -> dict[str, str]:
    """The mutants of the list with what kills them."""
    if not LIST.exists():
        return {}
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \| `(.*)` \| `(.*)` \| (.*) \|$", LIST.read_text(), re.MULTILINE)
    unescaped = [[cell.replace("\\|", "|") for cell in row] for row in rows]
    return {f"{m}.{f}: {before} -> {after}": killed for m, f, before, after, killed in unescaped}


def as_page(results: dict[str, str]) -> str:
    """The list as Markdown."""
    lines = [
        "# Mutants",
        "",
        "Written by `make mutants ARGS=--write`: each expression of the callbacks that decide, spoilt in one way, and",
        "the first test that fails then. `tests/test_mutants.py` fails where the list no longer fits the source.",
        "",
        "| where | original | mutant | killed by |",
        "|---|---|---|---|",
    ]
    for module in TESTS:
        for mutant in mutants(module):
            if mutant.name in results:
                before, after = (" ".join(text.split()).replace("|", "\\|") for text in (mutant.before, mutant.after))
                lines.append(f"| `{module}.{mutant.function}` | `{before}` | `{after}` | {results[mutant.name]} |")
    return "\n".join(lines) + "\n"


def key(mutant: Mutant) -> str:
    """A mutant's name as the list has it: on one line."""
    return " ".join(mutant.name.split())


def main() -> int:
    """Runs the mutants that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("callbacks", nargs="*", help="class names; all where none is given")
    parser.add_argument("--new", action="store_true", help="leave out what the list has as killed")
    parser.add_argument("--write", action="store_true", help="renew the list")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (1)")
    parser.add_argument("--list", action="store_true", help="say what would be run")
    given = parser.parse_args()
    wanted = {name.lower() for name in given.callbacks}
    modules = [m for m in TESTS if not wanted or m.replace("_", "") in wanted]
    old, results = {name: by for name, by in known().items() if by != NOBODY}, {}
    todo = [m for module in modules for m in mutants(module) if not (given.new and key(m) in old)]
    if given.list:
        print("\n".join(m.name for m in todo), f"\n{len(todo)} mutants")
        return 0
    # A server imports what is large once, and forks a fresh process for each mutant.
    os.environ |= {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "jax", "optax", "flax.nnx", "keras"])
    lives = []
    with ProcessPoolExecutor(given.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        needed = list(dict.fromkeys(test for m in dict.fromkeys(m.module for m in todo) for test in TESTS[m]))
        if todo and (failed := pool.submit(killer, None, needed).result()):
            print(f"{failed} fails without any change.")
            return 2
        killed_by = pool.map(killer, todo, [TESTS[m.module] for m in todo])
        for number, (mutant, killed) in enumerate(zip(todo, killed_by, strict=True), 1):
            if killed is None and key(mutant) in SAME:
                shown = f"none: {SAME[key(mutant)]}"
            elif killed is None:
                lives.append(mutant)
                shown = NOBODY
            else:
                shown = f"`{killed}`"
            results[mutant.name] = shown
            print(f"{number}/{len(todo)} {key(mutant)}\n    {shown}", flush=True)
    if given.write:
        kept = {m.name: old[key(m)] for module in TESTS for m in mutants(module) if key(m) in old}
        LIST.write_text(as_page(kept | results))
    print(f"{len(todo)} mutants, {len(lives)} live")
    return 1 if lives else 0


if __name__ == "__main__":
    sys.exit(main())
