"""Checkpoints that callbacks ask for, with Orbax. These are exports: a run resumes from its own."""

import contextlib
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb import _orbax
from jaxcb._actions import fill
from jaxcb._processes import Processes
from jaxcb.writers._location import check_writable
from jaxcb.writers._writer import Writer, by_member

_MARK = "orbax.checkpoint"  # a file in each checkpoint; `ocp.is_orbax_checkpoint` says yes to any directory
_OF_THE_RUN = ("checkpoints", "result")  # directories below run_dir that are the run's own
_GONE = ".jaxcb-deleted"  # what a checkpoint is renamed to before it is deleted


class _Kept(NamedTuple):
    """A checkpoint of this run that is there."""

    path: Path
    value: float  # what it is ranked by; NaN for what is never best


class CheckpointWriter(Writer):
    """Saves what callbacks ask for, one save at a time, and deletes what is not to stay.

    A population's members lie below the path, each under its number, and stay or go each by its own values. Of several
    processes each writes its part of the arrays; directories are process 0's.
    """

    everywhere = True

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._owners: dict[Path, str] = {}  # templates of this run, and who saves there
        self._kept: dict[str, list[_Kept]] = {}  # template, with the number of a member -> oldest first
        self._worker: ThreadPoolExecutor | None = None
        self._flight: Future[None] | None = None

    def prepare(self, action: Any) -> None:
        self._claim(self.context.path(action.path).absolute(), action.owner)
        zeros = jax.tree.map(lambda x: np.zeros((), x.dtype), action.values)
        path = self._path(action.replace(values=zeros), step=0, epoch=0, batch=0)
        _orbax.check_place(path)
        if self.context.processes.leads:
            check_writable(path.parent, "checkpoints")
            if not action.when.shape:
                _refuse_others(path)

    def _claim(self, template: Path, owner: str) -> None:
        """Refuses what would replace or delete another's checkpoints."""
        for own in _OF_THE_RUN if self.context.run_dir is not None else ():
            if self.context.path(own).absolute() in (template, *template.parents):
                raise ValueError(
                    f"{owner} saves to {template}, but {own!r} below run_dir is where the run keeps what it resumes "
                    "from. Give another path."
                )
        for other, known in self._owners.items():
            if other == template and known != owner:
                raise ValueError(f"{known} and {owner} both save to {template}; give one of them another path.")
            if other in template.parents or template in other.parents:
                inner, outer = (template, other) if other in template.parents else (other, template)
                raise ValueError(
                    f"{inner} ({known if inner == other else owner}) lies within the checkpoint {outer} "
                    f"({known if outer == other else owner}), which is replaced as a whole; give one of them another "
                    "path."
                )
        self._owners[template] = owner

    def _path(self, action: Any, *, step: int, epoch: int, batch: int) -> Path:
        # Orbax takes no relative ones
        return self.context.path(fill(action, step=step, epoch=epoch, batch=batch)).absolute()

    def write(self, record: Any) -> None:
        tree: Any = None
        for member, action in by_member(record.action):
            self._land()
            path = self._path(action, step=record.step, epoch=record.epoch, batch=record.batch)
            if tree is None:
                # copies: donation takes nothing from what is being saved, and the loop waits for nothing of it
                tree = self.context.run.copy_of(lambda state, what=action.what: _chosen(state, what))
            own, key = tree, action.path
            if member is not None:
                path, key = path / str(member), f"{key}/{member}"
                own = jax.tree.map(lambda x, m=member: x[m], tree)
            new = _Kept(path, math.nan if action.value is None else float(action.value))
            facts = {"step": record.step, "epoch": record.epoch, "what": action.what, "owner": action.owner}
            if not math.isnan(new.value):
                facts["value"] = new.value
            place = f"in epoch {record.epoch + 1} at step {record.step}"
            note = f"This happened while saving {path} for {action.owner}, {place}."
            with _noted(note):
                self.context.claim(path, action.owner)
                if self.context.processes.leads:
                    _refuse_others(path)
                _refuse_same_names(own)
                # of several processes it is begun where no step is under way
                if not action.async_ or self.context.processes.several:
                    self._save(own, facts, key, new, action, note)
                    continue
            self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="jaxcb-checkpoint")
            self._flight = self._worker.submit(self._save, own, facts, key, new, action, note)

    def _save(self, tree: Any, facts: dict[str, Any], key: str, new: _Kept, action: Any, note: str) -> None:
        """Saves, and then deletes what is not to stay; of one in the background all of it is done there."""
        with _noted(note):
            _save(new.path, tree, facts, self.context.processes)
            self._retain(key, new, action)

    def _retain(self, key: str, new: _Kept, action: Any) -> None:
        """Deletes what is neither among the latest nor among the best; called when the new one is complete."""
        if action.max_to_keep is None and action.keep_best is None:
            return
        kept = [old for old in self._kept.get(key, []) if old.path != new.path] + [new]
        sign = 1.0 if action.mode == "min" else -1.0
        ranked = sorted(
            (k for k in kept if not math.isnan(k.value)), key=lambda k: sign * k.value
        )  # of equals the older
        stay = {k.path for k in kept[-(action.max_to_keep or 1) :] + ranked[: action.keep_best or 0]}
        for old in kept:
            if old.path not in stay:
                if self.context.processes.leads:
                    _delete(old.path)
                if old.path in self.context.files:
                    self.context.files.remove(old.path)
        self._kept[key] = [k for k in kept if k.path in stay]

    def position(self) -> Any:
        self._land()
        return {key: [[self._relative(k.path), _as_json(k.value)] for k in kept] for key, kept in self._kept.items()}

    def restore(self, position: Any) -> None:
        for key, kept in (position or {}).items():
            entries = [_Kept(self.context.path(p).absolute(), math.nan if v is None else float(v)) for p, v in kept]
            self._kept[key] = entries
            self.context.files.extend(k.path for k in entries if k.path.exists() and k.path not in self.context.files)

    def _relative(self, path: Path) -> str:
        """A path that stays right when the run's directory moves."""
        directory = self.context.run_dir
        if directory is not None and path.is_relative_to(directory.absolute()):
            return path.relative_to(directory.absolute()).as_posix()
        return path.as_posix()

    def tick(self, status: Any) -> None:
        if self._flight is not None and self._flight.done():
            self._land()  # so that a save that failed is heard of soon

    def _land(self) -> None:
        """Waits for the save that is under way, and raises what it raised."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.result()

    def close(self) -> None:
        # Orbax loses a save that is under way at the end of a process, and may hang there
        try:
            self._land()
        finally:
            if self._worker is not None:
                self._worker.shutdown()
                self._worker = None


@contextlib.contextmanager
def _noted(note: str) -> Iterator[None]:
    """Adds a note, once, to what is raised."""
    try:
        yield
    except Exception as error:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def _as_json(value: float) -> Any:
    """JSON knows no NaN; Python's reads infinities back."""
    return None if math.isnan(value) else value


def _chosen(state: Any, what: str) -> Any:
    return state if what == "state" else {"params": state.params, "model_state": state.model_state}


def _refuse_others(path: Path) -> None:
    """Raises an error where something else than a checkpoint is in the way."""
    if path.exists() and not (path / _MARK).is_file():
        raise FileExistsError(f"{path} is there and is no Orbax checkpoint, so it is not replaced. Give another path.")


def _refuse_same_names(tree: Any) -> None:
    """Raises an error for two leaves that Orbax would write to the same place: it takes a dot for a separator."""
    known: dict[str, str] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        other = known.setdefault(jax.tree_util.keystr(path, simple=True, separator="."), name)
        if other != name:
            raise ValueError(f"the leaves {other} and {name} have the same name in a checkpoint; rename one of them.")


def _cleared(path: Path) -> bool:
    """Makes way for a checkpoint, and returns whether it replaces one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for rest in path.parent.glob(f"*{_GONE}"):  # of a process that was killed while it deleted
        shutil.rmtree(rest, ignore_errors=True)
    new = _new(path)
    if not path.exists() and (new / _MARK).is_file():  # a process was killed between the two renames of `_replace`
        new.rename(path)
    return path.exists()


def _new(path: Path) -> Path:
    return path.with_name(f"{path.name}.jaxcb-new")


def _save(path: Path, tree: Any, facts: dict[str, Any], processes: Processes) -> None:
    """Saves so that at any time a complete checkpoint is there: the old one goes when the new one is complete."""
    replaces = processes.agree(lambda: _cleared(path))
    # Orbax's own overwrite=True deletes first and then saves
    _orbax.save(str(_new(path) if replaces else path), tree, overwrite=replaces, custom_metadata=facts)
    if replaces and processes.leads:
        _replace(path, _new(path))


def _replace(path: Path, new: Path) -> None:
    old = path.with_name(f"{path.name}.jaxcb-old")
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed right here
    path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _delete(path: Path) -> None:
    """Deletes a checkpoint under another name, so that no half of one is ever seen under its own."""
    if (path / _MARK).is_file():  # somebody may have taken it away, or put something else there
        gone = path.with_name(path.name + _GONE)
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
