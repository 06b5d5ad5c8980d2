"""Writer for `Checkpoint` actions, with Orbax. These are exports: a run resumes from its own checkpoints."""

import contextlib
import math
import re
import string
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcb._src.core.actions.utils import fill
from jaxcb._src.distributed.processes import Processes
from jaxcb._src.storage import exports as _exports
from jaxcb._src.storage import orbax as _orbax
from jaxcb._src.storage.failures import check_writable, system_error
from jaxcb._src.storage.fingerprint import frozen_facts, named
from jaxcb._src.utils.pytree import select
from jaxcb._src.writers.base import Writer, by_member
from jaxcb._src.writers.saved_checkpoints import CheckpointSaved

_OF_THE_RUN = ("checkpoints", "result")  # directories below run_dir that belong to the run itself


class _Kept(NamedTuple):
    """An existing checkpoint of this run."""

    path: Path
    value: float  # the value to rank by; NaN for never best
    old: bool = False  # whether it was written when exports had no owner record; then only this list knows the owner


class CheckpointWriter(Writer):
    """Saves checkpoints of callbacks, one at a time, and deletes those that are not to be kept.

    The checkpoints of a population's members are below the path, each under its number, and are kept or deleted by the
    member's own values. With several processes, each writes its part of the arrays; process 0 handles directories.
    """

    everywhere = True

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._owners: dict[Path, str] = {}  # template -> the callback that saves there
        self._kept: dict[str, list[_Kept]] = {}  # template (with a member's number) -> checkpoints, oldest first
        self._templates: set[str] = set()  # as callbacks give them
        self._dormant: dict[str, Any] = {}  # restored positions of templates that no callback has any more
        self._worker: ThreadPoolExecutor | None = None
        self._flight: Future[None] | None = None
        self._frozen: dict[int | None, tuple[Any, dict[str, Any]]] = {}  # by member: the arrays, and their facts

    def prepare(self, action: Any) -> None:
        self._claim(self.context.path(action.path, owner=action.owner).absolute(), action.owner)
        self._templates.add(action.path)
        zeros = jax.tree.map(lambda x: np.zeros((), x.dtype), action.values)
        path = self._path(action.replace(values=zeros), step=0, epoch=0, batch=0)
        _orbax.check_place(path)
        if self.context.processes.is_primary:
            check_writable(path.parent, "checkpoints")
            if not action.when.shape:
                _exports.check_free(path)

    def _claim(self, template: Path, owner: str) -> None:
        """Rejects paths that would replace or delete the checkpoints of another callback or of the run."""
        for name in _OF_THE_RUN if self.context.run_dir is not None else ():
            if self.context.path(name).absolute() in (template, *template.parents):
                raise ValueError(
                    f"{owner} saves to {template}, but {name!r} below run_dir is where the run saves the checkpoints "
                    "that it resumes from. Give another path."
                )
        for other, known in self._owners.items():
            if other == template and known != owner:
                raise ValueError(f"{known} and {owner} both save to {template}; give one of them another path.")
            if other in template.parents or template in other.parents:
                inner, outer = (template, other) if other in template.parents else (other, template)
                raise ValueError(
                    f"{inner} ({known if inner == other else owner}) is within the checkpoint {outer} "
                    f"({known if outer == other else owner}), which is replaced as a whole; give one of them another "
                    "path."
                )
        self._owners[template] = owner

    def _path(self, action: Any, *, step: int, epoch: int, batch: int) -> Path:
        # Orbax does not accept relative paths
        return self.context.path(fill(action, step=step, epoch=epoch, batch=batch)).absolute()

    def write(self, record: Any) -> None:
        tree: Any = None
        callbacks = self.context.run.callback_states if record.action.validated else {}
        for member, action in by_member(record.action):
            self._land()
            self.context.saved.deliver(self.context.run)  # before this save deletes an earlier one
            path = self._path(action, step=record.step, epoch=record.epoch, batch=record.batch)
            if tree is None:
                # a copy, because the state's buffers are donated while it is being saved
                tree = self.context.run.copy_of(lambda state, what=action.what: _chosen(state, what, callbacks))
            weights, key = tree, action.path
            if member is not None:
                path, key = path / str(member), f"{key}/{member}"
                weights = jax.tree.map(lambda x, m=member: x[m], tree)
            new = _Kept(path, math.nan if action.value is None else float(action.value))
            facts = {"step": record.step, "epoch": record.epoch, "what": action.what, "owner": action.owner}
            if not math.isnan(new.value):
                facts["value"] = new.value
            if frozen := self._frozen_facts(member):
                facts["frozen"] = frozen
            place = f"in epoch {record.epoch + 1} at step {record.step}"
            note = f"This happened while saving {path} for {action.owner}, {place}."
            with _noted(note):
                self.context.claim(path, action.owner)
                if self.context.processes.is_primary:
                    _exports.check_free(path)
                _refuse_same_names(weights)
                # with several processes, a save in the background could run collectives during a step
                if not action.async_ or self.context.processes.is_multiprocess:
                    self._save(weights, facts, key, new, action, note)
                    continue
            self._worker = self._worker or ThreadPoolExecutor(1, thread_name_prefix="jaxcb-checkpoint")
            self._flight = self._worker.submit(self._save, weights, facts, key, new, action, note)

    def _frozen_facts(self, member: int | None) -> dict[str, Any]:
        """Returns what the checkpoint says of the frozen parameters, which it does not contain."""
        frozen = self.context.run.frozen_params
        if frozen is None:
            return {}
        member = None if self.context.run.frozen_axis is None else member
        arrays = jax.tree.leaves(frozen)
        known, facts = self._frozen.get(member, ((), {}))
        if len(known) != len(arrays) or any(x is not y for x, y in zip(known, arrays, strict=True)):
            own = {n: x if member is None else x[member] for n, x in named(frozen).items()}
            facts = frozen_facts(own)
            self._frozen[member] = arrays, facts
        return facts

    def _save(self, tree: Any, facts: dict[str, Any], key: str, new: _Kept, action: Any, note: str) -> None:
        """Saves, and then deletes what is not to be kept; both in the background if the save is."""
        failures, saved = self.context.failures, False
        with _noted(note), failures.handled(new.path, "This export is missing."), _as_system_error(new.path):
            if self.context.processes.is_primary:
                self.context.check_directory()
            _save(new.path, tree, facts, self.context.record.run, self.context.processes)
            saved = True
        if not saved:
            self.context.files.remove(new.path)
            return
        with _noted(note), failures.handled(new.path.parent, "Older exports remain."):
            self._retain(key, new, action)
            if self.context.processes.is_primary:
                saved = CheckpointSaved(new.path, facts["step"], facts["epoch"], "export", action.owner)
                self.context.saved.add(saved, action.on_saved)

    def _retain(self, key: str, new: _Kept, action: Any) -> None:
        """Deletes checkpoints that are neither among the newest nor the best; called when the new one is complete."""
        if action.max_to_keep is None and action.keep_best is None:
            return
        kept = [old for old in self._kept.get(key, []) if old.path != new.path] + [new]
        sign = 1.0 if action.mode == "min" else -1.0
        ranked = sorted(
            (k for k in kept if not math.isnan(k.value)), key=lambda k: sign * k.value
        )  # stable: of equal values the older one ranks first
        stay = {k.path for k in kept[-(action.max_to_keep or 1) :] + ranked[: action.keep_best or 0]}
        for old in kept:
            if old.path not in stay:
                if self.context.processes.is_primary:
                    self._delete(old)
                if old.path in self.context.files:
                    self.context.files.remove(old.path)
        self._kept[key] = [k for k in kept if k.path in stay]

    def _delete(self, kept: _Kept) -> None:
        """Deletes an export, if it is still this run's: it may have been removed or replaced."""
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
        """Restores the list of checkpoints, but only at paths that match the templates of callbacks."""
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
                        f"the checkpoint says that the run saved to {name!r}, which does not match {template!r}; what "
                        "is there is left unchanged."
                    )
                    continue
                number = math.nan if value is None else float(value)
                entries.append(_Kept(path, number, self.context.inherits or bool(old)))
            self._kept[key] = entries
            self.context.files.extend(k.path for k in entries if k.path.exists() and k.path not in self.context.files)

    def _template_of(self, key: str) -> str | None:
        """Returns the template of a key of `_kept`: the key itself, or without the number of a member at its end."""
        above, _, member = key.rpartition("/")
        return key if key in self._templates else above if above in self._templates and member.isdecimal() else None

    def _relative(self, path: Path) -> str:
        """Returns a path that stays valid when the run's directory is moved."""
        directory = self.context.run_dir
        if directory is not None and path.is_relative_to(directory.absolute()):
            return path.relative_to(directory.absolute()).as_posix()
        return path.as_posix()

    def tick(self, status: Any) -> None:
        if self._flight is not None and self._flight.done():
            self._land()  # raises the error of a failed save soon

    def _land(self) -> None:
        """Waits for the save in progress, and raises its error."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.result()

    def close(self) -> None:
        # At the end of a process, Orbax loses a save in progress, and may hang.
        try:
            self._land()
        finally:
            if self._worker is not None:
                self._worker.shutdown()
                self._worker = None


@contextlib.contextmanager
def _noted(note: str) -> Iterator[None]:
    """Adds a note, once, to errors that are raised within the context."""
    try:
        yield
    except Exception as error:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def _as_json(value: float) -> Any:
    """Returns None for NaN, which JSON does not have; Python's JSON reads infinities."""
    return None if math.isnan(value) else value


def _chosen(state: Any, what: str, callbacks: Mapping[str, Any]) -> Any:
    """Returns what to save of a train state.

    Args:
        state: the train state.
        what: "model" or "state".
        callbacks: states of the callbacks; the averages of one that exchanges them for validations, and has not now,
            are saved instead of the weights.
    """
    for key, slot in state.weights.items():
        own: Any = callbacks.get(key.rpartition("/")[0])
        if hasattr(own, "averaged") and hasattr(own, "swapped"):
            parts = {part: getattr(state, part) for part in slot.value}
            state = state.replace(**select(own.averaged & ~own.swapped, slot.value, parts))
    if what == "state":
        return state.replace(frozen=None)
    return {"params": state.evaluation_params(), "model_state": state.model_state}


def _refuse_same_names(tree: Any) -> None:
    """Raises an error if Orbax would write two leaves to the same place: it uses a dot as separator."""
    known: dict[str, str] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        other = known.setdefault(jax.tree_util.keystr(path, simple=True, separator="."), name)
        if other != name:
            raise ValueError(f"the leaves {other} and {name} have the same name in a checkpoint; rename one of them.")


def _fits(path: Path, template: Path, of_member: bool) -> bool:
    """Returns whether a path matches a template."""
    parts = string.Formatter().parse(str(template) + ("/{member}" if of_member else ""))
    pattern = "".join(re.escape(text) + ("" if field is None else "[^/]+") for text, field, _, _ in parts)
    return ".." not in path.parts and re.fullmatch(pattern, str(path)) is not None


@contextlib.contextmanager
def _as_system_error(path: Path) -> Iterator[None]:
    """Raises an `OSError` with the path of the export for an error of the system in Orbax's message."""
    try:
        yield
    except Exception as error:
        found = system_error(error)
        if found is None:
            raise
        shown = f"cannot save the checkpoint: {found.strerror}"
        raise type(found)(found.errno, shown, str(path)) from None


def _save(path: Path, tree: Any, facts: dict[str, Any], run: str, processes: Processes) -> None:
    """Saves so that a complete checkpoint exists at any time: the old one is deleted when the new one is complete."""
    new = processes.broadcast_from_primary(lambda: str(_exports.begin(path, run)))
    try:
        _orbax.save(new, tree, custom_metadata=facts)  # its overwrite=True would delete the old one before saving
        if processes.is_primary:
            _exports.finish(path, run)
    except Exception:
        if processes.is_primary:
            _exports.discard(path, run)  # frees its disk space
        raise
