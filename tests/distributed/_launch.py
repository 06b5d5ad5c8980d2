"""Starts real processes on this machine, and ends all of them whatever happens."""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from _patience import PATIENCE

CHILD = Path(__file__).with_name("_child.py")
ROOT = CHILD.parent.parent.parent


class Group:
    """Processes that were started together.

    Args:
        count: how many.
        arguments: of each.
        directory: for what they write.
    """

    def __init__(self, count: int, arguments: Sequence[str], directory: Path) -> None:
        port = _free_port()
        env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and not k.lower().endswith("_proxy")}
        env["PYTHONPATH"] = str(ROOT)
        self._files = [directory / f"{index}.txt" for index in range(count)]
        self.processes: list[subprocess.Popen[bytes]] = []
        for index, file in enumerate(self._files):
            command = [sys.executable, "-u", str(CHILD), f"127.0.0.1:{port}", str(count), str(index), *arguments]
            with file.open("wb") as output:
                self.processes.append(subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT))

    def output(self, index: int) -> str:
        """What a process has written so far."""
        return self._files[index].read_text(errors="replace")

    def outputs(self) -> str:
        """What all have written."""
        return "".join(f"--- process {i}\n{self.output(i)}" for i in range(len(self.processes)))

    def until(self, holds: Callable[[], bool], seconds: float = 2 * PATIENCE) -> None:
        """Waits until something holds; fails with the output where it does not, or where a process has ended."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, self.outputs()
            assert all(p.poll() is None for p in self.processes), self.outputs()
            time.sleep(0.05)

    def end(self, seconds: float = 2 * PATIENCE, *, of: Sequence[int] | None = None) -> list[int]:
        """Waits for the processes, or some of them, and returns their exit codes."""
        end = time.monotonic() + seconds
        chosen = self.processes if of is None else [self.processes[i] for i in of]
        while any(p.poll() is None for p in chosen):
            assert time.monotonic() < end, f"still running after {seconds} s\n{self.outputs()}"
            time.sleep(0.05)
        return [p.returncode for p in chosen]

    def kill(self, index: int, signum: int = signal.SIGKILL) -> None:
        """Sends a signal to one process."""
        self.processes[index].send_signal(signum)


def _free_port() -> int:
    """A port below those that the system gives to whoever asks for any: it is free until process 0 listens on it."""
    for port in random.Random().sample(range(20_000, 32_000), 100):
        with socket.socket() as free:
            if free.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no port is free")


@contextmanager
def started(count: int, *arguments: object) -> Iterator[Group]:
    """Starts processes of `_child.py`."""
    with tempfile.TemporaryDirectory(prefix="jaxcb-processes-") as directory:
        group = Group(count, [str(a) for a in arguments], Path(directory))
        try:
            yield group
        finally:
            for process in group.processes:
                if process.poll() is None:
                    process.kill()
            for process in group.processes:
                process.wait(PATIENCE)
