"""Writers of host actions: `Call`, `Summarize` and `Profile`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcb._src.inspection.summary import as_text, summarize, totals
from jaxcb._src.storage.failures import check_writable, named, system_error
from jaxcb._src.storage.ownership import remove_files
from jaxcb._src.utils.flat_jit import eval_shape
from jaxcb._src.writers.base import Writer


class CallWriter(Writer):
    """Calls the function; notes callback, hook and position on its errors."""

    def write(self, record: Any) -> None:
        run, action, context = self.context.run, record.action, self.context
        fresh = getattr(action, "fresh", {})  # a `Call` passes every value; subclasses may say which are new
        values = {name: np.asarray(v) for name, v in action.values.items() if np.all(fresh.get(name, True))}
        logs = {name: v.item() if v.ndim == 0 else v for name, v in values.items()}
        run.params = {"epochs": context.epochs, "steps": context.steps_per_epoch, "verbose": context.verbose}
        run._enter(record, logs)
        try:
            action.fn(run)
        except Exception as error:
            error.add_note(
                f"This happened in the callback {action.owner}.{record.hook}, in epoch {record.epoch + 1} at step "
                f"{record.step}."
            )
            raise


class SummaryWriter(Writer):
    """Prints the model summary; without FLOPs if the run has no traced step."""

    def write(self, record: Any) -> None:
        run, action = self.context.run, record.action
        traced = run.traced_step() if run.traced_step is not None else None
        # shapes are enough, and avoid copies of a large model
        state = traced.state if traced is not None else eval_shape(lambda s: s, run.state)
        summary = summarize(state, traced, run.frozen)
        print(as_text(summary.grouped(action.depth)) if action.verbose else totals(summary), flush=True)


class ProfileWriter(Writer):
    """Writes profiles to `plugins/profile` of their directory, each in a directory named by its time."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._rooms: set[Path] = set()
        self._under_way: Path | None = None
        self._before: list[Path] = []  # profiles that existed when it started

    def prepare(self, action: Any) -> None:
        directory = self.context.path(action.log_dir, owner=action.owner)
        if directory not in self._rooms:
            check_writable(directory, "profiles")
            self._rooms.add(directory)
            self.context.files.append(_room(directory))

    def write(self, record: Any) -> None:
        if record.action.begins:
            self._begin(self.context.path(record.action.log_dir))
        else:
            self._end()

    def _begin(self, directory: Path) -> None:
        if self._under_way is not None:
            return
        before = _profiles(directory)
        with named("a profile", directory):
            self.context.check_directory()
        try:
            jax.profiler.start_trace(str(directory))
        except RuntimeError as error:
            raise RuntimeError(
                f"the profiler cannot be started: {error} JAX allows one per process; stop the other one first."
            ) from None
        self._under_way, self._before = directory, before

    def _end(self) -> None:
        if self._under_way is None:
            return
        directory, self._under_way = self._under_way, None
        with self.context.failures.handled(directory, "This profile is missing."), named("a profile", directory):
            _stop_trace()
        new = [path for path in _profiles(directory) if path not in self._before]
        if len(new) == 1:  # with several, another run has written one at the same time
            files = [p.relative_to(new[0]).as_posix() for p in new[0].rglob("*") if p.is_file()]
            self.context.record.make(self.context.key(new[0]), files)

    def position(self) -> Any:
        kept = {self.context.key(d): [p.name for p in _profiles(d) if self._is_own(p)] for d in self._rooms}
        under_way = None if self._under_way is None else self.context.key(self._under_way)
        return {"kept": kept, "under_way": under_way}

    def _is_own(self, profile: Path) -> bool:
        return self.context.key(profile) in self.context.record.made

    def restore(self, position: Any) -> None:
        """Removes the profiles that the run wrote later, and restarts one that was in progress."""
        for directory in self._rooms:
            key = self.context.key(directory)
            if key not in position["kept"]:
                continue
            for room in _profiles(directory):
                if self._is_own(room) and room.name not in position["kept"][key]:
                    remove_files(room, self.context.record.made[self.context.key(room)])
            if key == position["under_way"]:
                self._begin(directory)

    def close(self) -> None:
        self._end()


def _stop_trace() -> None:
    """Writes the profile. XLA reports an error of the system in the text of its own."""
    try:
        jax.profiler.stop_trace()
    except Exception as error:
        raise system_error(error) or error from None


def _profiles(directory: Path) -> list[Path]:
    return sorted(_room(directory).iterdir()) if _room(directory).is_dir() else []


def _room(directory: Path) -> Path:
    return directory / "plugins" / "profile"
