"""`Checkpointer`: decides when to write a checkpoint, and restores the loop state."""

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._src.checkpointing import former_windows
from jaxcb._src.checkpointing.bucket_run import BucketRun
from jaxcb._src.checkpointing.layout import CHECKPOINTS, FACTS, RESULT
from jaxcb._src.checkpointing.manifest import NAME as MANIFEST
from jaxcb._src.checkpointing.manifest import Saved
from jaxcb._src.checkpointing.request import compare_traced
from jaxcb._src.checkpointing.store import Store
from jaxcb._src.core.chain import Chain
from jaxcb._src.utils.names import class_key, is_key_of
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.saved_checkpoints import CheckpointSaved, SavedCheckpoints

SAVE_SECONDS = 60.0  # maximum seconds between checkpoints

# leaves that must not change: with another model, optimizer or position it is another run
_FIXED = (
    ".train.step",
    ".train.key",
    ".train.params",
    ".train.opt_state",
    ".train.model_state",
    ".train.rngs",
    ".step",
    ".epoch",
    ".began",
    ".evaluated",
    ".seq",
)
_FLAG = 1 << 20  # elements of the largest flag: one for each member
_WINDOW = re.compile(r"\.windows\[('.*?'|\".*?\")\]\.")


class Checkpointer:
    """Writes the checkpoints of a run and restores them.

    A checkpoint contains the leaves of the loop state by name, and host metadata ("facts"): position in the data, file
    offsets, stops, elapsed seconds, and which callbacks were used.

    Args:
        directory: the run directory.
        callbacks: the callbacks of the run.
        config: the requested training, as JSON.
        context: prints lines, reports damaged checkpoints and failed saves, and checks that the directory is in place.
        on_error: "raise" or "warn" if saving fails.
        run: id of the run.
    """

    def __init__(
        self,
        directory: Path,
        callbacks: Chain,
        config: Mapping[str, Any],
        context: Context,
        on_error: str,
        run: str,
    ) -> None:
        given: dict[str, Any] = {"run": run, "say": context.warn, "on_error": on_error, "form": FACTS}
        given |= {"processes": context.processes, "check": context.check_directory}
        self._training = Store(directory / CHECKPOINTS, keep=2, **given)
        self._result = Store(directory / RESULT, keep=1, **given)
        self._callbacks, self._say, self._warn = callbacks, context.say, context.warn
        self._about = {"run": run, "config": dict(config), "callbacks": _fingerprints(callbacks)}
        self._traced: Mapping[str, Any] = {}
        self._requested = False
        self._saved_at = time.monotonic()
        self._mirror: BucketRun | None = None

    def mirror(self, bucket: BucketRun) -> None:
        """Copies each complete checkpoint, and the files of the run up to it, to a bucket from now on."""
        self._mirror = bucket
        for store in (self._training, self._result):
            store.call_on_complete(bucket.save, "prepare the upload of the checkpoint")

    def describe(self, traced: Mapping[str, Any]) -> None:
        """Adds the facts of the request that are known once the run is built, before the first checkpoint."""
        self._traced = traced
        config = self._about["config"]
        self._about = {**self._about, "config": {**config, "request": {**config.get("request", {}), **traced}}}

    # Writing

    def tell(self, saved: SavedCheckpoints) -> None:
        """Adds each complete checkpoint of the training to those that callbacks are told of."""

        def add(path: Path, facts: Mapping[str, Any]) -> None:
            saved.add(CheckpointSaved(path, facts["step"], facts["epoch"], "run"))

        self._training.call_on_complete(add, "note the checkpoint for callbacks")

    def request_save(self) -> None:
        """Requests a checkpoint as soon as no dispatch is pending."""
        self._requested = True

    @property
    def due(self) -> bool:
        """Whether a checkpoint is due."""
        failed = self._mirror is not None and self._mirror.failed  # which the next save raises
        return self._requested or failed or time.monotonic() - self._saved_at >= SAVE_SECONDS

    def save(self, leaves: Mapping[str, Any], facts: Mapping[str, Any], *, wait: bool = False) -> None:
        """Writes a checkpoint of the training. No dispatch may be pending."""
        if self._mirror is not None:
            self._mirror.check()
        self._training.save(int(facts["step"]), dict(leaves), {**facts, **self._about}, wait=wait)
        self._requested, self._saved_at = False, time.monotonic()

    def save_result(self, leaves: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Writes the result of the run, after `on_train_end`."""
        self._result.save(int(facts["step"]), dict(leaves), {**facts, **self._about}, wait=True)

    def what_is_saved(self) -> str:
        """Returns a sentence about what is left of a run that has failed."""
        last = self._training.newest()
        if last is None:
            return f"There is no checkpoint of the run in {self._training.directory}."
        return f"The run is saved up to {last}; resume=True continues from there."

    def close(self) -> None:
        """Waits for pending writes."""
        try:
            self._training.close()
        finally:
            self._result.close()

    # Restoring

    def find_latest(self) -> tuple[Saved | None, Saved | None]:
        """Returns the newest checkpoint of the training and the result of a completed run; None if there is none."""
        return self._training.latest(), self._result.latest(needed=False)

    def restore(self, saved: Saved, leaves: Mapping[str, Any], *, finished: bool = False) -> dict[str, Any]:
        """Restores a checkpoint into the loop state of a new run.

        The state of a callback that is new, or that was another callback under the same name, starts at its initial
        value, and so does a new metric. State that has no owner any more is dropped. Such changes are printed once.

        Args:
            saved: the checkpoint.
            leaves: leaves of the new run's loop state, by name.
            finished: whether it is the checkpoint of a result.

        Returns:
            The restored leaves by name; without those that do not fit.

        Raises:
            ValueError: for parameters or optimizer states of another shape, listing them; for another loss function.
        """
        store = self._result if finished else self._training
        stored, new = former_windows.shapes(saved.leaves), leaves
        directory = saved.path.parent.parent
        found = compare_traced(saved.facts["config"].get("request", {}), self._traced)
        _check_fixed_leaves(saved, stored, new)
        found.refuse(directory)
        found.warn(directory, saved.step, self._warn)
        dropped = self._changed(saved.facts["callbacks"]) + _other_windows(stored, new)
        wanted = {
            # an uncommitted array must stay uncommitted, otherwise the first step would compile again
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding if leaf.committed else None)
            for name, leaf in new.items()
            if _shape_and_dtype(stored.get(name)) == _shape_and_dtype(leaf) and not name.startswith(tuple(dropped))
        }
        self._check_ema_swapped(store, saved, dropped)
        loaded = former_windows.load(store, saved, wanted)
        _check_position(saved, loaded)
        self._report_changes(saved, stored, new, dropped)
        return loaded

    def _changed(self, before: Mapping[str, str]) -> list[str]:
        """Returns the name prefixes of leaves that belong to other callbacks."""
        other = _replaced_callbacks(before, self._callbacks)
        return [start for name in other for start in (f".callbacks['{name}']", f".train.weights['{name}/")]

    def _check_ema_swapped(self, store: Store, saved: Saved, dropped: list[str]) -> None:
        """Raises an error if the training weights are stored in the state of a callback that is missing."""
        known = {f".callbacks['{name}']" for name, _ in self._callbacks.items()} - set(dropped)
        for name, leaf in saved.leaves.items():
            owner, _, field = name.rpartition(".")
            gone = owner.startswith(".callbacks[") and field == "swapped" and owner not in known
            if gone and math.prod(leaf.shape) <= _FLAG and bool(jnp.any(store.load(saved, {name: leaf})[name])):
                raise ValueError(
                    f"{owner.removeprefix('.callbacks')} was saved while it held the training weights, with "
                    "averages in their place. Resume with the same callback."
                )

    def _report_changes(
        self, saved: Saved, stored: Mapping[str, Any], new: Mapping[str, Any], dropped: list[str]
    ) -> None:
        before, now = saved.facts["callbacks"], _fingerprints(self._callbacks)
        changes = {
            "new and start with their initial state": sorted(now.keys() - before.keys()),
            "missing, and their state is dropped": sorted(before.keys() - now.keys()),
            "other callbacks under the same name, and start with their initial state": _replaced_callbacks(
                before, self._callbacks
            ),
        }
        for what, names in changes.items():
            if names:
                self._say(f"jaxcb: resuming with other callbacks: {', '.join(names)} are {what}.")
        controls = sorted(n.split("'")[1] for n in new.keys() - stored.keys() if n.startswith(".train.controls["))
        if controls:
            self._say(f"jaxcb: resuming with new controls, which start as given: {', '.join(controls)}.")


def _other_windows(stored: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the name prefixes of accumulators with other metrics than before.

    Their sums of part of an epoch are useless for a mean.
    """
    groups = sorted({found[0] for name in new if (found := _WINDOW.match(name))})
    return [
        group
        for group in groups
        if {n for n in stored if n.startswith(group)} != {n for n in new if n.startswith(group)}
    ]


def _check_fixed_leaves(saved: Saved, stored: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises an error if leaves that must not change differ."""
    misfits = []
    for name in sorted({n for n in (*stored, *new) if n.startswith(_FIXED)}):
        before, now = _shape_and_dtype(stored.get(name)), _shape_and_dtype(new.get(name))
        if before != now:
            misfits.append(f"  {name.removeprefix('.train.')}: saved {_shown(before)}, now {_shown(now)}")
    if misfits:
        listed = "\n".join(misfits[:20]) + (f"\n  and {len(misfits) - 20} more" if len(misfits) > 20 else "")
        raise ValueError(
            f"the run in {saved.path.parent.parent} was saved with another model or optimizer:\n{listed}\n"
            "Resume with the code that saved it, or pass another run_dir, or "
            "checkpointing=jc.Checkpointing(overwrite=True)."
        )


def _check_position(saved: Saved, loaded: Mapping[str, Any]) -> None:
    """Raises an error if the position of the loop state is not that of the metadata."""
    facts = saved.facts
    for name in ("step", "epoch"):
        there = loaded.get(f".{name}")
        if there is not None and there.ndim == 0 and int(there) != facts[name]:
            raise ValueError(
                f"{saved.path / MANIFEST} says that the run is at {name} {facts[name]}, but its arrays are of {name} "
                f"{int(there)}. Restore it from a backup, or remove it, so that the one before is used."
            )
    feed = facts["feed"] or {}
    if feed.get("batches", 0) > facts["step"] or feed.get("pass", 0) > facts["step"] + 1:
        raise ValueError(
            f"{saved.path / MANIFEST} says that {feed.get('batches')} batches of pass {feed.get('pass')} were used "
            f"in {facts['step']} steps. Restore it from a backup, or remove it, so that the one before is used."
        )


def _shape_and_dtype(leaf: Any) -> tuple[Any, ...] | None:
    return None if leaf is None else (tuple(leaf.shape), str(leaf.dtype))


def _shown(form: Any) -> str:
    return "nothing" if form is None else f"{form[1]}{list(form[0])}"


def _fingerprints(callbacks: Chain) -> dict[str, str]:
    """Returns class, monitor and mode of each callback. Numeric fields are configuration and may change."""
    return {name: " ".join((class_key(type(c)), *_facts_of(c))) for name, c in callbacks.items() if c.affects_run}


def _replaced_callbacks(before: Mapping[str, str], callbacks: Chain) -> list[str]:
    """Returns the names under which a checkpoint stores the state of another callback."""
    return [name for name, callback in callbacks.items() if name in before and not _is_same(before[name], callback)]


def _is_same(fingerprint: str, callback: Any) -> bool:
    key, *facts = fingerprint.split(" ")
    return is_key_of(key, type(callback)) and " ".join(facts) == " ".join(_facts_of(callback))


def _facts_of(callback: Any) -> list[str]:
    facts = []
    for field in ("monitor", "mode"):
        value = getattr(callback, field, None)
        if value is not None:
            facts.append(f"{field}={value if isinstance(value, str) else getattr(value, '__qualname__', 'function')}")
    return facts
