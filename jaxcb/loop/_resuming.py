"""Where a run starts: anew, from a checkpoint of its training, or from the result that it has come to."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxcb._chain import Chain
from jaxcb._check import one_of
from jaxcb._records import JOURNAL
from jaxcb.loop._feed import FeedStart
from jaxcb.loop._keeping import Keeper
from jaxcb.loop._store import Saved

_OURS = ("history.csv", JOURNAL, "checkpoints", "result")


class Start(NamedTuple):
    """Where a run starts.

    Attributes:
        keeper: saves it; None where it has no directory.
        saved: what it starts from; None for a new run.
        finished: whether that is the result of a run that has come to its end.
        changed: whether something else was asked for when it was saved.
    """

    keeper: Keeper | None = None
    saved: Saved | None = None
    finished: bool = False
    changed: bool = False

    @property
    def files(self) -> dict[str, int]:
        """Where its files stood, in bytes."""
        return {} if self.saved is None else self.saved.facts["files"]

    @property
    def feed(self) -> FeedStart | None:
        """Where its data goes on; None for its beginning."""
        if self.saved is None or self.finished:
            return None
        facts = self.saved.facts
        return FeedStart(facts["epoch"], facts["cursor"], facts["step"], facts["feed"])


def find_start(
    directory: Path,
    *,
    callbacks: Chain,
    config: Mapping[str, Any],
    resume: bool | str,
    overwrite: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    on_save_error: str,
) -> Start:
    """Looks at a run's directory.

    Args:
        directory: the run's.
        callbacks: the run's.
        config: what was asked for, as JSON: for how long, and with which callbacks.
        resume: whether a run that is there goes on.
        overwrite: whether it is replaced.
        say: prints a line.
        warn: tells of what is damaged or cannot be saved.
        on_save_error: "raise" or "warn".

    Raises:
        FileExistsError: where a run is there, and nothing says what to do with it.
        OSError: for a directory that cannot be used.
    """
    one_of("fit", "resume", resume, (False, True, "auto"))
    there = [name for name in _OURS if (directory / name).exists()]
    if there and not resume and not overwrite:
        raise FileExistsError(
            f"{directory} already holds a run. Pass resume='auto' to go on with it, overwrite=True to replace it, or "
            "another run_dir."
        )
    if overwrite:
        for name in there:
            _remove(directory / name)
    directory.mkdir(parents=True, exist_ok=True)
    keeper = Keeper(directory, callbacks, config, say, warn, on_save_error)
    training, result = keeper.look()
    if training is None and result is None:  # new, or killed before it was first saved
        return Start(keeper)
    changes = _changes((result or training).facts["config"], config)  # pyright: ignore[reportOptionalMemberAccess]
    if result is not None and (training is None or not changes):
        how = "stopped" if result.facts["stops"] else "finished"
        say(f"jaxcb: the run in {directory} has {how} at step {result.facts['step']}; this is its result.")
        return Start(keeper, result, finished=True)
    assert training is not None
    facts = training.facts
    why = f"; changed: {'; '.join(changes)}" if changes else ""
    say(f"jaxcb: resuming {directory} at step {facts['step']}, in epoch {facts['epoch'] + 1}{why}.")
    return Start(keeper, training, changed=bool(changes))


def describe(callbacks: Chain, epochs: int | None, steps: int | None) -> dict[str, Any]:
    """What was asked for, in words that are the same in each process."""
    named = {name: re.sub(r" at 0x[0-9a-f]+", "", repr(callback)) for name, callback in callbacks.members()}
    return {"epochs": epochs, "steps": steps, "callbacks": named}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changes = [f"{name} {before[name]} -> {now[name]}" for name in ("epochs", "steps") if before[name] != now[name]]
    callbacks = {**before["callbacks"], **now["callbacks"]}
    other = [name for name in callbacks if before["callbacks"].get(name) != now["callbacks"].get(name)]
    return changes + ([f"callbacks {', '.join(sorted(other))}"] if other else [])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
