"""Checkpoints that callbacks ask for, with Orbax. These are exports: a run resumes from its own."""

import contextlib
import math
import re
import string
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb._src.core.actions.utils import fill
from jaxcb._src.distributed.processes import Processes
from jaxcb._src.storage import exports as _exports
from jaxcb._src.storage import orbax as _orbax
from jaxcb._src.writers.base import Writer, by_member
from jaxcb._src.writers.files import check_writable

_OF_THE_RUN = ("checkpoints", "result")  # directories below run_dir that are the run's own


class _Kept(NamedTuple):
    """A checkpoint of this run that is there."""

    path: Path
    value: float  # what it is ranked by; NaN for what is never best
    old: bool = False  # whether it was made when exports had no record, so that this list alone says whose it is


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
        self._templates: set[str] = set()  # as callbacks give them
        self._dormant: dict[str, Any] = {}  # what a checkpoint says of templates that no callback gives any more
        self._worker: ThreadPoolExecutor | None = None
        self._flight: Future[None] | None = None

    def prepare(self, action: Any) -> None:
        self._claim(self.context.path(action.path).absolute(), action.owner)
        self._templates.add(action.path)
        zeros = jax.tree.map(lambda x: np.zeros((), x.dtype), action.values)
        path = self._path(action.replace(values=zeros), step=0, epoch=0, batch=0)
        _orbax.check_place(path)
        if self.context.processes.is_primary:
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
                if self.context.processes.is_primary:
                    _refuse_others(path)
                _refuse_same_names(own)
                # of several processes it is begun where no step is under way
                if not action.async_ or self.context.processes.is_multiprocess:
                    self._save(own, facts, key, new, action, note)
                    continue
            self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="jaxcb-checkpoint")
            self._flight = self._worker.submit(self._save, own, facts, key, new, action, note)

    def _save(self, tree: Any, facts: dict[str, Any], key: str, new: _Kept, action: Any, note: str) -> None:
        """Saves, and then deletes what is not to stay; of one in the background all of it is done there."""
        with _noted(note):
            _save(new.path, tree, facts, self.context.record.run, self.context.processes)
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
                if self.context.processes.is_primary:
                    self._delete(old)
                if old.path in self.context.files:
                    self.context.files.remove(old.path)
        self._kept[key] = [k for k in kept if k.path in stay]

    def _delete(self, kept: _Kept) -> None:
        """Deletes an export of this run; somebody may have taken it away, or put something else there."""
        if (kept.path / _exports.MARK).is_file():
            run, _ = _exports.contents(kept.path)
            if run == self.context.record.run or (run is None and kept.old):
                _exports.remove(kept.path, self.context.record.run)

    def position(self) -> Any:
        self._land()
        return self._dormant | {
            key: [[self._relative(k.path), _as_json(k.value), *([True] if k.old else [])] for k in kept]
            for key, kept in self._kept.items()
        }

    def restore(self, position: Any) -> None:
        """Takes over what the run has saved: at paths that the callbacks' own templates give, and at no others."""
        for key, kept in position.items():
            template = self._template_of(key)
            if template is None:
                self._dormant[key] = kept
                continue
            entries = []
            for name, value, *old in kept:
                path = self.context.path(name).absolute()
                if not _fits(path, self.context.path(template).absolute(), key != template):
                    self.context.warn(
                        f"the checkpoint says that the run saved to {name!r}, which is no path of {template!r}; what "
                        "lies there is left alone."
                    )
                    continue
                number = math.nan if value is None else float(value)
                entries.append(_Kept(path, number, self.context.inherits or bool(old)))
            self._kept[key] = entries
            self.context.files.extend(k.path for k in entries if k.path.exists() and k.path not in self.context.files)

    def _template_of(self, key: str) -> str | None:
        """The template that a key of `_kept` belongs to: itself, or with the number of a member behind it."""
        above, _, member = key.rpartition("/")
        return key if key in self._templates else above if above in self._templates and member.isdecimal() else None

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
    if path.exists() and not (path / _exports.MARK).is_file():
        raise FileExistsError(f"{path} is there and is no Orbax checkpoint, so it is not replaced. Give another path.")


def _refuse_same_names(tree: Any) -> None:
    """Raises an error for two leaves that Orbax would write to the same place: it takes a dot for a separator."""
    known: dict[str, str] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        other = known.setdefault(jax.tree_util.keystr(path, simple=True, separator="."), name)
        if other != name:
            raise ValueError(f"the leaves {other} and {name} have the same name in a checkpoint; rename one of them.")


def _fits(path: Path, template: Path, of_member: bool) -> bool:
    """Whether a path is one that a template gives."""
    parts = string.Formatter().parse(str(template) + ("/{member}" if of_member else ""))
    pattern = "".join(re.escape(text) + ("" if field is None else "[^/]+") for text, field, _, _ in parts)
    return ".." not in path.parts and re.fullmatch(pattern, str(path)) is not None


def _save(path: Path, tree: Any, facts: dict[str, Any], run: str, processes: Processes) -> None:
    """Saves so that at any time a complete checkpoint is there: the old one goes when the new one is complete."""
    new = processes.broadcast_from_primary(lambda: str(_exports.begin(path, run)))
    _orbax.save(new, tree, custom_metadata=facts)  # its overwrite=True deletes first and then saves
    if processes.is_primary:
        _exports.finish(path, run)
