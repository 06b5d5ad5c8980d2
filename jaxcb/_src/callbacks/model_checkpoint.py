"""`ModelCheckpoint`: saves the weights while training."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from jaxcb._src.callbacks.monitor import NO_BEST, Monitor, improved, is_old, monitor_name, read
from jaxcb._src.core.actions.host import Checkpoint
from jaxcb._src.core.actions.logging import Print
from jaxcb._src.core.actions.utils import PLACES, template_names
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metric_names import check_monitor, resolve_mode
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import (
    check_bool,
    check_choice,
    check_int,
    check_interval,
    check_number,
    check_verbose,
)
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import Struct, static, to_strong_types

_NAN = math.nan


class ModelCheckpointState(Struct):
    """State of `ModelCheckpoint`."""

    best: Any  # float32 (), the value of the last save with save_best_only; NaN before the first
    value: Any  # float32 (), the monitor's last report; NaN before the first
    reported: Any  # int32 (), step of that report; -1 before the first
    ranked: Any  # int32 (), step of the report that the last save was ranked by; -1 before the first
    saved_at: Any  # float32 (), seconds of the run at the last save with every_minutes
    known: dict[str, Any]  # name -> float32 (), last values of the path's metrics that batches do not report


class ModelCheckpoint(Callback):
    """Saves the weights while training: each epoch, every few steps or minutes, or when a metric improves.

    Each save is an Orbax directory; `jc.load` reads it. Saves are atomic, even if the process is killed, and replace an
    older save of the same name. They are exports: a run resumes from its `run_dir`.

    Args:
        filepath: the directory of a save, a template: `"{epoch:02d}-{val_loss:.2f}"`. It may use metrics, `epoch`
            and `batch` (within the epoch), both from 1, and `step` (updates done). A relative path is below
            `run_dir` if there is one, and must not be in the run's own `checkpoints` and `result`.
        monitor: a metric's name, or a pure function of `Metrics` that returns a scalar. Used only with
            `save_best_only` and `keep_best`.
        verbose: 1 prints a line at each save, and with `save_best_only` also when the monitor did not improve.
        save_best_only: save only if the monitor is better than ever before. With `save_freq="epoch"` every report of
            the monitor is compared, also within an epoch; else the last report before each due save.
        save_weights_only: save only `params` and `model_state`; else the whole train state, with optimizer, keys,
            controls and named weights, from which training can continue.
        mode: "min", "max", or "auto" to derive it from the name.
        save_freq: "epoch": at the end of each epoch, and at each validation within one (`Execution(eval_every=)`); or a
            number of steps: a save is due when `step % save_freq == 0`.
        initial_value_threshold: with `save_best_only`, the value that the first save must beat; None for no threshold.
        max_to_keep: how many of the newest saves to keep; None for all, or for one if `keep_best` is given.
        keep_best: how many of the best saves to keep besides these, by the last report of the monitor before each
            save; None for no such rule. A NaN, or no report since the save before, is never among the best.
        every_n_epochs: with `save_freq="epoch"`, save only every n-th epoch.
        every_minutes: instead of at the end of epochs, a save is due this many minutes after the last one; the clock is
            read a few times per second. None for no clock.
        save_at_end: also save the final weights, after callbacks have restored or averaged them; replaces a save of the
            same name.
        async_: save in the background; one save is in progress at a time, and the end of the run waits for it.
        on_saved: a function of each complete save (`jc.writers.CheckpointSaved`: `path`, `step`, `epoch`...), called
            between two dispatches of the run; None for no function.

    State:
        `best`, `value`, `reported`, `ranked`, `saved_at`, `known`.

    Raises:
        TypeError: if `filepath` is not a path.
        ValueError: if `filepath` is empty or an address that no store serves, if arguments are out of range or
            contradict each other, or if the mode cannot be derived from the name.

    Example:
        >>> import jaxcb as jc
        >>> save = jc.ModelCheckpoint("{epoch:02d}-{val_loss:.1f}", save_best_only=True)
        >>> replay = jc.replay(save, {"val_loss": [0.5, 0.7, 0.2]})
        >>> [jc.actions.fill(action, epoch=epoch) for epoch, fired in enumerate(replay.actions) for action in fired]
        ['01-0.5', '03-0.2']

    Source: `keras.callbacks.ModelCheckpoint`; `lightning.pytorch.callbacks.ModelCheckpoint` for the intervals and for
    the saves to keep. Differs from Keras in NaN (never the best), in a missing monitor (an error), in `save_freq=n`
    (steps of the run, without drift; works with `save_best_only`), and in atomic saves.
    """

    filepath: Any = static()
    monitor: Monitor = static(default="val_loss")
    verbose: int = static(default=0)
    save_best_only: bool = static(default=False)
    save_weights_only: bool = static(default=False)
    mode: Literal["auto", "min", "max"] = static(default="auto")
    save_freq: int | Literal["epoch"] = static(default="epoch")
    initial_value_threshold: Any = None
    max_to_keep: int | None = static(default=None, kw_only=True)
    keep_best: int | None = static(default=None, kw_only=True)
    every_n_epochs: int = static(default=1, kw_only=True)
    every_minutes: float | None = static(default=None, kw_only=True)
    save_at_end: bool = static(default=False, kw_only=True)
    async_: bool = static(default=False, kw_only=True)
    on_saved: Callable[[Any], Any] | None = static(default=None, kw_only=True)

    def __post_init__(self) -> None:
        owner = "ModelCheckpoint"
        path = path_text(owner, "filepath", self.filepath)
        self._set("filepath", path)
        try:
            template_names(path)
        except ValueError as error:
            raise ValueError(f"{owner}: filepath {self.filepath!r} is not a valid template: {error}.") from None
        for name in ("save_best_only", "save_weights_only", "save_at_end", "async_"):
            self._set(name, check_bool(owner, name, getattr(self, name)))
        if self.on_saved is not None and not callable(self.on_saved):
            raise TypeError(f"{owner}: on_saved must be a function of a checkpoint, got {self.on_saved!r}.")
        check_monitor(owner, self.monitor)
        self._check_numbers(owner)
        self._check_cadences(owner)
        if self.save_best_only and self.save_at_end:
            raise ValueError(
                f"{owner}: save_at_end=True would save the last weights among the best ones. Use a second {owner} with "
                "another path, or keep_best= instead of save_best_only=True."
            )
        if self.initial_value_threshold is not None:
            threshold = check_number(owner, "initial_value_threshold", self.initial_value_threshold)
            self._set("initial_value_threshold", threshold)
        if self._compares:
            self._set("mode", resolve_mode(owner, self.monitor, self.mode))
        else:  # the monitor is not read, so its name need not imply a mode
            check_choice(owner, "mode", self.mode, ("auto", "min", "max"))

    def _check_numbers(self, owner: str) -> None:
        check_verbose(owner, self.verbose)
        self._set("save_freq", check_interval(owner, "save_freq", self.save_freq))
        for name in ("max_to_keep", "keep_best", "every_n_epochs"):
            if getattr(self, name) is not None:
                self._set(name, check_int(owner, name, getattr(self, name), least=1))
        if self.every_minutes is not None:
            self._set("every_minutes", check_number(owner, "every_minutes", self.every_minutes, least=0))

    def _check_cadences(self, owner: str) -> None:
        cadences = {
            f"save_freq={self.save_freq!r}": self.save_freq != "epoch",
            f"every_n_epochs={self.every_n_epochs}": self.every_n_epochs != 1,
            f"every_minutes={self.every_minutes}": self.every_minutes is not None,
        }
        given = [text for text, is_given in cadences.items() if is_given]
        if len(given) > 1:
            raise ValueError(f"{owner}: {' and '.join(given)} conflict; use a second {owner} for one of them.")

    @property
    def _compares(self) -> bool:
        """Whether the monitor is read."""
        return self.save_best_only or self.keep_best is not None

    @property
    def _by_epoch(self) -> bool:
        return self.save_freq == "epoch" and self.every_minutes is None

    @property
    def _remembers(self) -> tuple[str, ...]:
        """The names that the path uses and a batch may not report."""
        return (
            () if self._by_epoch else tuple(dict.fromkeys(n for n in template_names(self.filepath) if n not in PLACES))
        )

    def hooks(self) -> frozenset[str]:
        hooks = {"on_epoch_end"} if self._by_epoch else {"on_batch_end"}
        if not self._by_epoch and (self._compares or self._remembers):
            hooks |= {"on_eval_end", "on_epoch_end"}
        if self._by_epoch:
            hooks |= {"on_eval_end"}
        return frozenset(hooks | ({"on_train_end"} if self.save_at_end else set()))

    def init(self) -> ModelCheckpointState:
        best = NO_BEST if self.initial_value_threshold is None else self.initial_value_threshold
        state = ModelCheckpointState(
            best=jnp.asarray(best, jnp.float32),
            value=_NAN,
            reported=-1,
            ranked=-1,
            saved_at=0.0,
            known=dict.fromkeys(self._remembers, _NAN),
        )
        return to_strong_types(state)

    def on_batch_end(self, state: ModelCheckpointState, metrics: Metrics) -> Any:
        state = self._note(state, metrics, all_known=False)
        return self._save(state, metrics, self._is_due(state, metrics))

    def on_eval_end(self, state: ModelCheckpointState, metrics: Metrics) -> Any:
        state = self._note(state, metrics)
        if not self._by_epoch and not self.save_best_only:
            return state, None
        # At the end of an epoch, on_epoch_end compares this report, because only there the path may use epoch means.
        due = self._is_due(state, metrics)
        return self._save(state, metrics, due & ~metrics.closes_epoch if self._by_epoch else due)

    def on_epoch_end(self, state: ModelCheckpointState, metrics: Metrics) -> Any:
        state = self._note(state, metrics)
        return self._save(state, metrics, self._is_due(state, metrics)) if self._by_epoch else (state, None)

    def on_train_end(self, state: ModelCheckpointState, metrics: Metrics) -> Any:
        return self._save(self._note(state, metrics), metrics, metrics.step > 0)

    def _is_due(self, state: ModelCheckpointState, metrics: Metrics) -> Array:
        if self.every_minutes is not None:
            return metrics["elapsed"] - state.saved_at >= self.every_minutes * 60.0
        if self.save_freq != "epoch":
            return metrics.step % self.save_freq == 0
        return (metrics.epoch + 1) % self.every_n_epochs == 0

    def _note(self, state: ModelCheckpointState, metrics: Metrics, *, all_known: bool = True) -> ModelCheckpointState:
        """Records the last reports. Batches report only their own values; in other hooks a missing name is an error."""
        known = {n: metrics[n] if all_known or n in metrics else state.known[n] for n in self._remembers}
        state = state.replace(known={n: v.astype(jnp.float32) for n, v in known.items()})
        if not self._compares or is_old(self, self.monitor, metrics):
            return state
        try:
            value, reported = read("ModelCheckpoint", self.monitor, metrics)
        except LookupError:
            if all_known:
                raise
            return state
        new = reported > state.reported
        return state.replace(
            value=jnp.where(new, value, state.value), reported=jnp.where(new, reported, state.reported)
        )

    def _save(self, state: ModelCheckpointState, metrics: Metrics, due: Array) -> Any:
        better = improved(state.value, state.best, 0.0, self.mode) if self.save_best_only else jnp.ones_like(due)
        when = due & better
        # A report ranks only one save: a later save without a new report has no rank.
        fresh = (state.reported > state.ranked) | (state.reported == metrics.step)
        after = state
        if self.save_best_only:
            after = after.replace(best=jnp.where(when, state.value, state.best))
        if self._compares:
            after = after.replace(ranked=jnp.where(when, state.reported, state.ranked))
        if self.every_minutes is not None:
            after = after.replace(saved_at=jnp.where(when, metrics["elapsed"], state.saved_at))
        values = {n: metrics[n] if n in metrics else state.known[n] for n in self._remembers}
        save = Checkpoint(
            self.filepath,
            "model" if self.save_weights_only else "state",
            values=values,
            value=jnp.where(fresh, state.value, _NAN) if self._compares else None,
            mode="max" if self.mode == "max" else "min",
            max_to_keep=self.max_to_keep,
            keep_best=self.keep_best,
            async_=self.async_,
            on_saved=self.on_saved,
            # what was compared: not the raw weights, where a `SwapEMAWeights` had the averages validated
            validated=self._compares and isinstance(self.monitor, str) and self.monitor.startswith("val_"),
            when=when,
        )
        return after, (*self._lines(state, values, due, better), save)

    def _lines(
        self, state: ModelCheckpointState, values: dict[str, Array], due: Array, better: Array
    ) -> tuple[Any, ...]:
        if not self.verbose:
            return ()
        place = "Epoch {epoch}: " if self._by_epoch else "Epoch {epoch}, step {step}: "
        if not self.save_best_only:
            return (Print(f"{place}saving to {self.filepath}", values=values, when=due),)
        name = monitor_name(self.monitor)
        values = {**values, "_best": state.best, "_value": state.value}
        first = f"{place}{name} is {{_value:.5f}}, the first value, saving to {self.filepath}"
        saved = f"{place}{name} improved from {{_best:.5f}} to {{_value:.5f}}, saving to {self.filepath}"
        kept = f"{place}{name} did not improve from {{_best:.5f}}"
        none = jnp.isnan(state.best)
        return (
            Print(first, values=values, when=due & better & none),
            Print(saved, values=values, when=due & better & ~none),
            Print(kept, values=values, when=due & ~better),
        )
