"""Processes that take turns, so that noise meets them alike.

The noise of a shared machine comes in stretches of seconds. Turns of about a second meet the same noise, and the median
over rounds of the ratio within a round is far steadier than the ratio of two runs one behind the other. Each contestant
lives in a process of its own, so that none meets the threads, the compiler or the memory of another, and all but the
one whose turn it is are stopped (SIGSTOP). The order changes from round to round.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from _case import Case

WARM_UP = 2  # turns that are not counted: they compile, and find their pace
_BENCH = Path(__file__).with_name("bench.py")


class Race(NamedTuple):
    """What was measured of a case.

    Attributes:
        taken: contestant -> what each round took, in the case's unit.
        cpu: contestant -> the seconds of all its threads in each round, which other processes disturb less; empty
            where a round is a process.
        outcomes: contestant -> what it did.
    """

    taken: dict[str, list[float]]
    cpu: dict[str, list[float]]
    outcomes: dict[str, dict[str, Any]]


class Failed(Exception):
    """A contestant did not come to its end."""


def run(case: Case, *, rounds: int) -> Race:
    """Measures a case over so many rounds."""
    names = list(case.contestants)
    order = [names[i % len(names) :] + names[: i % len(names)] for i in range(rounds + WARM_UP)]
    if case.fresh:
        return _run_fresh(case, order[:rounds])
    runners = {name: _Runner(case, name, len(order)) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    try:
        for number, turn in enumerate(order):
            for name in turn:
                said = runners[name].turn()
                if number >= WARM_UP:
                    taken[name].append(said["seconds"])
                    cpu[name].append(said["cpu"])
        return Race(taken, cpu, {name: runner.end() for name, runner in runners.items()})
    finally:
        for runner in runners.values():
            runner.close()


def run_trees(case: Case, trees: dict[str, Path], *, rounds: int) -> dict[str, list[float]]:
    """Measures our contestant of a case in several checkouts, which take turns; each runs its own benchmarks.

    Returns:
        Checkout -> what each round took, in the case's unit.
    """
    names = list(trees)
    runners = {name: _Runner(case, case.ours, rounds + WARM_UP, tree) for name, tree in trees.items()}
    taken: dict[str, list[float]] = {name: [] for name in names}
    try:
        for number in range(rounds + WARM_UP):
            for name in names if number % 2 else reversed(names):
                said = runners[name].turn()
                if number >= WARM_UP:
                    taken[name].append(said["seconds"])
        for runner in runners.values():
            runner.end()
        return taken
    finally:
        for runner in runners.values():
            runner.close()


def _run_fresh(case: Case, order: list[list[str]]) -> Race:
    taken: dict[str, list[float]] = {name: [] for name in case.contestants}
    outcomes: dict[str, dict[str, Any]] = {}
    for name, contestant in case.contestants.items():
        if isinstance(contestant, str):  # once for what is left on the disk
            _once(case, name)
    for turn in order:
        for name in turn:
            outcome = _once(case, name)
            taken[name].append(outcome["measured"])
            outcomes[name] = outcome
    return Race(taken, {}, outcomes)


def _once(case: Case, name: str) -> dict[str, Any]:
    contestant = case.contestants[name]
    if isinstance(contestant, str):
        # compiled modules are kept, as they are wherever a package is installed
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        found = subprocess.run([sys.executable, "-c", contestant], capture_output=True, text=True, check=False, env=env)
        if found.returncode:
            raise Failed(f"{name}: {found.stderr[-2000:]}")
        return json.loads(found.stdout)
    runner = _Runner(case, name, 1)
    try:
        runner.begin()
        return runner.end()
    finally:
        runner.close()


class _Runner:
    """A contestant's process, as the one who calls the turns sees it."""

    def __init__(self, case: Case, name: str, turns: int, tree: Path | None = None) -> None:
        self._name = name
        bench = _BENCH if tree is None else tree / "benchmarks" / _BENCH.name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, str(bench), "--contestant", case.name, name, str(turns)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=None if tree is None else {**os.environ, "PYTHONPATH": str(tree)},
        )
        self._running = True

    def turn(self) -> dict[str, float]:
        """Lets it work for one turn, and returns the seconds that it took, and those of all its threads."""
        self._go()
        said = self._read()
        self._stop()
        return said

    def begin(self) -> None:
        """Lets it work without a turn."""
        self._go()

    def end(self) -> dict[str, Any]:
        """Lets it come to its end, and returns what it did."""
        self._go()
        while "did" not in (said := self._read()):
            pass
        return said["did"]

    def _go(self) -> None:
        if not self._running:
            self._process.send_signal(signal.SIGCONT)
            self._running = True
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        self._running = False

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise Failed(f"{self._name} ended early: {self._errors.read()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


class Baton:
    """A contestant's side: it waits for its turn, and says when one is over.

    Attributes:
        turns: how many there are, with those that are not counted.
        epochs: of a turn.
    """

    def __init__(self, turns: int, epochs: int) -> None:
        self.turns, self.epochs = turns, epochs
        self._left = turns
        self._reports = os.fdopen(os.dup(1), "w")  # what contestants print goes elsewhere
        self._began = self._cpu = 0.0

    @property
    def total(self) -> int:
        """All epochs."""
        return self.turns * self.epochs

    def take(self) -> None:
        """Waits for the turn."""
        sys.stdin.readline()
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def hand_on(self) -> None:
        """Ends the turn, and waits for the next one where there is one."""
        self._say({"seconds": time.perf_counter() - self._began, "cpu": time.process_time() - self._cpu})
        self._left -= 1
        if self._left:
            self.take()

    def epoch_done(self, epoch: int) -> None:
        """To be called after each epoch, counted from 0."""
        if (epoch + 1) % self.epochs == 0:
            self.hand_on()

    def each(self) -> Iterator[int]:
        """For a contestant whose turn is a call: yields once a turn."""
        for number in range(self.turns):
            yield number
            self.hand_on()

    def end(self, did: dict[str, Any]) -> None:
        """Says what was done."""
        sys.stdin.readline()
        self._say({"did": did})

    def _say(self, what: dict[str, Any]) -> None:
        self._reports.write(json.dumps(what) + "\n")
        self._reports.flush()


class Terminal(io.TextIOBase):
    """A terminal that nobody sees: progress bars are drawn in full, and go nowhere."""

    def isatty(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)
