"""Kills the digits run (`_digits_run.py`) wherever it is, starts it again, and compares what it comes to."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _patience import PATIENCE
from loop._changes import CHANGES
from loop._events import digests

PROGRAM = Path(__file__).with_name("_digits_run.py")
ROOT = PROGRAM.parent.parent.parent
PLACES = ("start-up", "training", "a save")


def chance() -> random.Random:
    """Other moments each time; the seed is shown where a test fails."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


class Life:
    """One process of a run, from its start to its end.

    Args:
        run_dir: the run's directory.
        options: the program's.
        cache: whether what is compiled goes into JAX's cache on disk. JAX writes an entry in place, so that a killed
            process would leave half of one there.
    """

    def __init__(self, run_dir: Path, options: tuple[str, ...] = (), *, cache: bool = False) -> None:
        self.run_dir = run_dir
        self._before = self._saves()
        path = os.pathsep.join([str(ROOT), str(PROGRAM.parent.parent)])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        if not cache:
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1000000"
        self._output = run_dir.parent / f"{run_dir.name}.out"
        self.began = time.monotonic()
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM), str(run_dir), *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self._output.read_text(errors="replace")

    @property
    def trains(self) -> bool:
        """Whether a step of this process was read."""
        return "\nstep " in self.said

    @property
    def saving(self) -> bool:
        """Whether a save is half done that this process has begun."""
        return bool(self._saves() - self._before)

    def _saves(self) -> set[tuple[str, int]]:
        found = set()
        for path in self.run_dir.glob("*/.saving-*"):
            try:
                found.add((path.name, path.stat().st_ino))
            except FileNotFoundError:  # it was renamed meanwhile
                continue
        return found

    def wait_for(self, what: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Waits until something holds; False where the process ended first, or the time was over."""
        limit = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < limit:
            if what():
                return True
            time.sleep(0.0005)
        return False

    def end(self, signum: int) -> tuple[str, float]:
        """Sends a signal; returns where that hit the process, and how many seconds it then took to end."""
        place = None
        if signum != signal.SIGKILL:  # else what it leaves behind says it exactly
            place = self._place()
        sent = time.monotonic()
        self.process.send_signal(signum)
        self.process.wait(PATIENCE)
        return place or self._place(), time.monotonic() - sent

    def _place(self) -> str:
        return PLACES[2] if self.saving else PLACES[1] if self.trains else PLACES[0]

    def finish(self) -> None:
        """Waits for its own end, which must be a good one."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        if status != 0:
            raise AssertionError(f"the run ended with status {status}:\n{self.said}")


class Kill(NamedTuple):
    """One process's end.

    Attributes:
        moment: waits for it; False where the process ended first.
        signum: the signal that it is sent.
        options: of the program, for this process alone.
    """

    moment: Callable[[Life], bool]
    signum: int = signal.SIGKILL
    options: tuple[str, ...] = ()


@dataclasses.dataclass
class Hits:
    """Where a run was hit, how many processes it took, and the longest that one took to end, in seconds."""

    places: Counter[str] = dataclasses.field(default_factory=Counter)
    lives: int = 0
    longest: float = 0.0


def whole_run(run_dir: Path, options: tuple[str, ...]) -> float:
    """Runs without a kill, and returns the seconds that it took."""
    life = Life(run_dir, options, cache=True)
    life.finish()
    return time.monotonic() - life.began


def killed_run(run_dir: Path, options: tuple[str, ...], plan: Iterable[Kill]) -> Hits:
    """Kills a run again and again, as planned, until it ends by itself, which it must do well.

    Args:
        run_dir: its directory.
        options: the program's.
        plan: the kills, one for each process.
    """
    hits = Hits()
    for moment, signum, more in plan:
        life = Life(run_dir, options + more)
        hits.lives += 1
        if not moment(life):
            life.finish()
            return hits
        place, seconds = life.end(signum)
        if life.process.returncode == 0 and "\ndone\n" in life.said:  # it was through before the signal came
            return hits
        allowed = {143} if signum == signal.SIGTERM else {-signum}
        if signum == signal.SIGTERM and not _takes_signals(life.said):
            allowed.add(-signum)
        if life.process.returncode not in allowed:
            raise AssertionError(f"hit in {place}, it ended with status {life.process.returncode}:\n{life.said}")
        hits.places[place] += 1
        hits.longest = max(hits.longest, seconds)
    hits.lives += 1
    Life(run_dir, options).finish()
    return hits


def _takes_signals(said: str) -> bool:
    """Whether the run, and not what stands before or after it in the program, certainly had the signal."""
    return "\nstep " in said and "\ndeaf\n" not in said


def at_random(rng: random.Random, seconds: float) -> Callable[[Life], bool]:
    """Moments spread evenly over a time from the start; a process that ends before is not hit."""

    def wait(life: Life) -> bool:
        limit = life.began + rng.uniform(0, seconds)
        return life.wait_for(lambda: time.monotonic() >= limit)

    return wait


def in_saves(rng: random.Random, saves: int) -> Callable[[Life], bool]:
    """Moments within one of the first saves of a process, or soon after: the process does not wait there."""

    def wait(life: Life) -> bool:
        for _ in range(rng.randint(1, saves)):
            if not (life.wait_for(lambda: not life.saving) and life.wait_for(lambda: life.saving)):
                return False
        limit = time.monotonic() + rng.uniform(0, 0.05)
        return life.wait_for(lambda: time.monotonic() >= limit)

    return wait


def stopped_in_a_save(rng: random.Random) -> Kill:
    """A process that waits within one of its first saves to be killed. It is hit, unless it saves no more."""
    change = rng.choice(list(CHANGES))
    options = ("--wait-at", change, str(rng.randint(1, 4)))
    return Kill(lambda life: life.wait_for(lambda: f"\nat {change}\n" in life.said), options=options)


def differences(whole: Path, killed: Path) -> list[str]:
    """What the two runs came to, compared to the last bit: what differs, by name."""
    found = []
    with np.load(whole / "end.npz") as a, np.load(killed / "end.npz") as b:
        found += [f"end.npz: {name} is in one of them" for name in sorted(set(a.files) ^ set(b.files))]
        for name in sorted(set(a.files) & set(b.files)):
            x, y = a[name], b[name]
            if (x.dtype, x.shape, x.tobytes()) != (y.dtype, y.shape, y.tobytes()):
                found.append(f"end.npz: {name} is {y}, not {x}")
    files, others = _files(whole), _files(killed)
    found += [f"{name} is in one of them" for name in sorted(files.keys() ^ others.keys())]
    for name in sorted(files.keys() & others.keys()):
        x, y = files[name], others[name]
        if x != y:
            at = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
            found.append(f"{name}: {len(y)} bytes, not {len(x)}; the first that differs is at {at}")
    return found


def _files(run_dir: Path) -> dict[str, bytes]:
    """All files of a run, what lies in `exports`, and what TensorBoard reads; what holds arrays is in `end.npz`."""
    found = {}
    for path in sorted(run_dir.iterdir()):
        if path.is_file() and path.name != "end.npz":
            found[path.name] = path.read_bytes()
    found |= digests(run_dir / "logs")
    for name in ("exports", "checkpoints", "result"):
        # of the run's own only what nobody has cleaned up: which steps are kept depends on when it was killed
        names = [p.name for p in (run_dir / name).iterdir() if name == "exports" or p.name.startswith(".")]
        found |= {f"{name}/{own}": b"" for own in names}
    return found
