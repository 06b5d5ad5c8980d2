"""`Writer`: what performs one kind of action on the host."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Context:
    """What a writer knows of its run.

    Attributes:
        run_dir: the run's directory, or None.
        run: the live run, as `Call` functions see it.
        verbose: 0 for silence.
        epochs: how many epochs the run is for, or None.
        steps_per_epoch: steps of an epoch, or None where not known.
        files: what was written, for the run's last word.
    """

    def __init__(self, run_dir: Path | None, run: Any, verbose: int | str, epochs: int | None) -> None:
        self.run_dir = run_dir
        self.run = run
        self.verbose = verbose
        self.epochs = epochs
        self.steps_per_epoch: int | None = None
        self.files: list[Path] = []
        self._owners: dict[Path, str] = {}

    def path(self, name: str) -> Path:
        """Returns where a file lies: relative names below `run_dir` where there is one."""
        path = Path(name).expanduser()
        return path if path.is_absolute() or self.run_dir is None else self.run_dir / path

    def claim(self, path: Path, owner: str) -> None:
        """Notes a file of the run and who writes it.

        Raises:
            ValueError: where somebody else does.
        """
        known = self._owners.setdefault(path.resolve(), owner)
        if known != owner:
            raise ValueError(f"{known} and {owner} both write {path}; give one of them another filename.")
        if path not in self.files:
            self.files.append(path)

    def say(self, text: str) -> None:
        """Prints a line, unless the run is silent."""
        if self.verbose != 0:
            print(text, flush=True)


class Writer:
    """Base of writers; one instance serves all actions of its kinds in a run."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def prepare(self, action: Any) -> None:
        """Sees each action of the run before the first step, shapes in place of arrays; refuses what cannot be."""

    def write(self, record: Any) -> None:
        """Performs one record."""
        raise NotImplementedError

    def tick(self, status: Any) -> None:
        """Hears where the run stands, a few times a second."""

    def close(self) -> None:
        """Makes everything durable."""


def by_member(action: Any) -> Iterator[tuple[int | None, Any]]:
    """Takes an action apart: the number of each member for which it fires and its own action.

    A single run's is given as it is, with None for the number.
    """
    when = np.asarray(action.when)
    if when.ndim == 0:
        yield None, action
    for member in np.flatnonzero(when) if when.ndim else ():
        yield int(member), jax.tree.map(lambda x, m=member: x[m], action)
