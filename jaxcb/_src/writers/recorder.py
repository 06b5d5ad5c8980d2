"""`Recorder`: performs the log and host actions of a hand-written loop."""

from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import numpy as np

from jaxcb._src.core.actions.base import Action, HostAction, LogAction
from jaxcb._src.core.actions.control import Stop
from jaxcb._src.core.actions.records import Records, records_of_rows
from jaxcb._src.core.actions.utils import as_actions, check_lazy, fill, is_lazy, materialize
from jaxcb._src.core.chain import as_chain
from jaxcb._src.utils.errors import check_choice
from jaxcb._src.utils.local_path import local_path
from jaxcb._src.utils.pytree import to_strong_types
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.dispatch import WriterDispatcher, close_all
from jaxcb._src.writers.run_handle import Record, Run


class Recorder:
    """Performs the log and host actions of callbacks in your own loop: rows, curves, checkpoints, lines, calls.

    `apply` applies the control actions. Use the recorder in a `with` block, which makes all output durable on every
    exit.

    Args:
        run_dir: the directory of relative paths; None for the working directory in which the recorder was made.
        callbacks: the callbacks whose actions will be performed; actions of others are rejected.
        verbose: 0 for no output.

    Attributes:
        files: the files that were written.
        stop_reason: which callback stopped the run and why; None if none did.

    Example:
        >>> import jaxcb as jc, tempfile
        >>> cb = jc.chain(jc.CSVLogger("log.csv"))
        >>> cb_state = cb.init()
        >>> with tempfile.TemporaryDirectory() as run_dir, jc.Recorder(run_dir, callbacks=cb, verbose=0) as recorder:
        ...     for epoch in range(2):
        ...         metrics = jc.Metrics({"loss": 0.5 - 0.125 * epoch}, epoch=epoch, step=epoch + 1)
        ...         cb_state, actions = cb.on_epoch_end(cb_state, metrics)
        ...         recorder.perform(actions, step=metrics.step, epoch=epoch)
        ...     print(recorder.files[0].read_text(), end="")
        epoch,step,loss
        0,1,0.5
        1,2,0.375
    """

    def __init__(
        self, run_dir: str | Path | None = None, *, callbacks: Any = None, verbose: Literal[0, 1, 2] | None = None
    ) -> None:
        check_choice("Recorder", "verbose", verbose, (None, 0, 1, 2))
        directory = None if run_dir is None else local_path("Recorder", "run_dir", run_dir)
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        self._run = Run(directory)
        self._context = Context(directory, self._run, verbose, None)
        self._performer = WriterDispatcher(self._context)
        whole = None if callbacks is None else as_chain(callbacks)
        for name, callback in () if whole is None else whole.items():
            if (listener := callback.checkpoint_listener()) is not None:
                self._context.saved.listen(name, listener)
        self._owners = None if whole is None else set(whole.names)
        self._known: set[Any] = set()
        self._reasons: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.fail(error)
        close_all(self._performer.writers.values(), error)
        if error is None:
            self._context.saved.deliver(self._run)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were written."""
        return tuple(self._context.files)

    @property
    def stop_reason(self) -> str | None:
        """Which callback stopped the run and why; None if none did."""
        return "; ".join(self._reasons) or None

    def perform(self, actions: Any, train_state: Any = None, *, step: Any = None, epoch: int = 0) -> None:
        """Performs the log and host actions that fire: log actions first, then host actions.

        Args:
            actions: the actions that a hook returned, or their stack from `lax.scan`, one entry per step; or the
                `records` of `scan`, which need neither step nor epoch.
            train_state: the current train state, for actions that need it (checkpoints, calls), and for the step.
            step: updates done, int32 (), or a stack of them; that of the train state if None.
            epoch: index of the epoch, from 0.

        Raises:
            ValueError: if neither `train_state` nor `step` is given, an action has an unknown owner, or records are
                those of several rows of `vmap`.
        """
        self._run._hold(train_state)
        if isinstance(actions, Records):
            records = self._records_of_scan(actions)
        else:
            records = self._records_of_hook(actions, train_state, step, epoch)
        for record in records:
            if isinstance(record.action, Stop):
                reason = fill(record.action, step=record.step, epoch=record.epoch, batch=record.batch)
                self._reasons.append(f"{record.action.owner}: {reason}" if record.action.owner else reason)
        self._performer.perform(r for r in records if isinstance(r.action, LogAction))
        self._performer.perform(r for r in records if isinstance(r.action, HostAction))
        self._context.saved.deliver(self._run)
        if self._run.stop_reason is not None:
            self._reasons.append(self._run.stop_reason)
            self._run.clear_stop()

    def _records_of_hook(self, actions: Any, train_state: Any, step: Any, epoch: int) -> list[Record]:
        """Returns the actions that fire of a hook call, or of a stack of them."""
        if step is None:
            if train_state is None:
                raise ValueError("perform needs the step: pass the train state, or step=.")
            step = train_state.step
        performed = tuple(
            to_strong_types(a) for a in as_actions(actions) if isinstance(a, LogAction | HostAction | Stop)
        )
        performed = tuple(a for request in performed for a in _answered(request, train_state))
        for action in performed:
            self._prepare(action)
        concrete, step = jax.device_get((performed, step))
        return list(_records(concrete, np.asarray(step), epoch))

    def _records_of_scan(self, records: Records) -> list[Record]:
        """Returns the actions that fire in the records of `scan`."""
        if records.rows:
            raise ValueError(
                f"got the records of several runs, with the leading axes {records.rows}. Each run has files of its "
                "own: perform the records of one, such as jax.tree.map(lambda x: x[0], run.records)."
            )
        for action in records.of(Action):
            self._prepare(action)
        (found,) = (row for _, row in records_of_rows(records))
        return [Record(f.action, f.hook, int(f.at.step), int(f.at.epoch), int(f.at.batch)) for f in found]

    def _prepare(self, action: Any) -> None:
        """Passes an action to its writer's `prepare` when it comes for the first time."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x)[np.ndim(action.when) :], x.dtype), action)
        kind = jax.tree.structure(action)
        if kind in self._known:
            return
        if self._owners is not None and action.owner not in self._owners:
            raise ValueError(
                f"got an action of {action.owner or 'an unknown callback'}, but the recorder was made for "
                f"{', '.join(sorted(self._owners)) or 'no callback'}. Call hooks through jc.chain(...), which sets the "
                "owner, or omit callbacks=."
            )
        self._performer.prepare(shapes)
        self._known.add(kind)


def _answered(action: Any, train_state: Any) -> tuple[Any, ...]:
    """Returns the actions with their payload that a lazy action stands for; other actions unchanged."""
    if not is_lazy(action):
        return (action,)
    if np.ndim(action.when):
        raise ValueError(
            f"{type(action).__name__}(of={action.of!r}) of {action.owner or 'an unknown callback'} is a stack of "
            "several steps, but the weights of earlier steps no longer exist. Perform it at the step at which it fires."
        )
    if not action.when:
        return ()
    check_lazy(action, "a hand-written loop")
    if train_state is None:
        raise ValueError(f"{type(action).__name__}(of={action.of!r}) needs the run: pass the train state.")
    return materialize(action, train_state)


def _records(actions: tuple[Any, ...], step: np.ndarray, epoch: int) -> Any:
    """Yields the actions that fire as records; the entries of a stack are consecutive steps, the last one is `step`."""
    length = max((np.shape(a.when)[0] for a in actions if np.ndim(a.when)), default=1)
    steps = np.broadcast_to(step, (length,)) if step.ndim else step - length + 1 + np.arange(length)
    for index in range(length):
        for action in actions:
            if not np.ndim(action.when) and index != length - 1:
                continue  # an action that is not stacked belongs to the last step
            action_at = jax.tree.map(lambda x, i=index: x[i], action) if np.ndim(action.when) else action
            if action_at.when:
                yield Record(action_at, "", int(steps[index]), epoch, 0)
