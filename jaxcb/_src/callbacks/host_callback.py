"""`HostCallback`: base class to port Keras callbacks."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from jaxcb._src.core.actions.host import Call
from jaxcb._src.core.callback import Callback, FunctionCallback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import CallbackError, did_you_mean
from jaxcb._src.utils.pytree import Struct, static

# Keras's method -> the jaxcb hook, and the counter that is passed as the first argument
_HOOKS = {
    "on_train_begin": ("on_train_begin", None),
    "on_train_end": ("on_train_end", None),
    "on_epoch_begin": ("on_epoch_begin", "epoch"),
    "on_epoch_end": ("on_epoch_end", "epoch"),
    "on_train_batch_begin": ("on_batch_begin", "batch"),
    "on_train_batch_end": ("on_batch_end", "batch"),
    "on_test_begin": ("on_eval_begin", None),
    "on_test_end": ("on_eval_end", None),
}
_SAVED = "on_checkpoint_saved"  # no hook: a save ends at any time
_ALIASES = {"on_train_batch_begin": "on_batch_begin", "on_train_batch_end": "on_batch_end"}
# Hooks of `predict`, which takes no callbacks. They are allowed because Keras does not call them in `fit` either.
_PREDICT = ("on_predict_begin", "on_predict_end", "on_predict_batch_begin", "on_predict_batch_end")
_CURES = {
    "on_test_batch_begin": "A validation is a single event here: on_test_begin and on_test_end.",
    "on_test_batch_end": "A validation is a single event here: on_test_begin and on_test_end.",
    "on_eval_begin": "Keras's name for it is on_test_begin.",
    "on_eval_end": "Keras's name for it is on_test_end.",
    "on_before_update": "That is a hook of pure callbacks: subclass jc.Callback.",
    "set_model": "The model is self.model, in every hook.",
    "set_params": "The parameters are self.params, in every hook.",
}


class HostCallback:
    """Base class of callbacks in Keras's style: impure Python on the host, with a mutable `self`.

    A subclass defines the methods that it needs, with Keras's names and arguments: `on_train_begin(logs)`,
    `on_train_end(logs)`, `on_epoch_begin(epoch, logs)`, `on_epoch_end(epoch, logs)`,
    `on_train_batch_begin(batch, logs)` and `on_train_batch_end(batch, logs)` (or `on_batch_begin` and
    `on_batch_end`), `on_test_begin(logs)` and `on_test_end(logs)`. `on_checkpoint_saved(checkpoint)`, which Keras has
    not, is called when a checkpoint is complete. Counters start at 0; `logs` has the values reported
    in this hook call, name -> float. `on_predict_*` may be defined but are never called, because `predict` takes no
    callbacks. An `__init__` need not call `super().__init__()`.

    `self.stop()` ends the run, as `self.model.stop_training = True` does in Keras. Changes to `self.model` do not
    affect the run, and attributes of `self` are not part of a checkpoint. Each defined method returns control to the
    host whenever it is called, so a batch method costs one round trip per step. A pure `jc.Callback` with a log action
    has no such cost.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> class StopAtLoss(jc.HostCallback):
        ...     def __init__(self, target):
        ...         self.target, self.seen = target, []
        ...     def on_epoch_end(self, epoch, logs=None):
        ...         self.seen.append(logs["loss"])
        ...         if logs["loss"] < self.target:
        ...             self.stop("low enough")
        >>> callback = StopAtLoss(0.1)
        >>> result = jc.fit(jnp.zeros(()), lambda w, x: jnp.mean((w - x) ** 2), jnp.ones(8), epochs=50,
        ...                 optimizer=optax.sgd, learning_rate=0.2, callbacks=[callback], verbose=0)
        >>> result.stop_reason, len(callback.seen)
        ('StopAtLoss: low enough', 4)

    Source: `keras.callbacks.Callback`.
    """

    _pure: ClassVar[type[FunctionCallback]]
    _run: Any = None
    _model: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_class(cls)
        # A class per user class, so that chains and errors show the user's class name.
        cls._pure = type(cls.__name__, (FunctionCallback,), {"__module__": cls.__module__})

    def as_callback(self) -> Callback:
        """Returns the pure callback that calls this object's methods; `chain` and `fit` use it."""
        functions = [
            (hook, _Ask(_Visit(self._visit, method, counter)))
            for method, (hook, counter) in _HOOKS.items()
            if self._defines(method) or (method in _ALIASES and self._defines(_ALIASES[method]))
        ]
        return type(self)._pure(tuple(functions), listener=self._saved if self._defines(_SAVED) else None)

    def _defines(self, method: str) -> bool:
        return getattr(getattr(self, method), "__func__", None) is not getattr(HostCallback, method)

    def _visit(self, run: Any, method: str, *arguments: Any) -> None:
        """Calls a method while `run` waits for it."""
        self._run, self._model = run, None
        *counters, logs = arguments
        call_with_logs(f"{type(self).__name__}.{method}", getattr(self, method), counters, logs)
        if getattr(self._model, "stop_training", False):
            raise CallbackError(
                f"{type(self).__name__}.{method} set self.model.stop_training, which has no effect here. Call "
                "self.stop() instead."
            )

    def _saved(self, run: Any, checkpoint: Any) -> None:
        """Calls `on_checkpoint_saved`."""
        self._run, self._model = run, None
        self.on_checkpoint_saved(checkpoint)

    @property
    def run(self) -> Any:
        """The live run: `step`, `epoch`, `state`, `run_dir`..."""
        if self._run is None:
            raise RuntimeError(
                f"{type(self).__name__} is not part of a run yet; self.run and self.model are available in hooks."
            )
        return self._run

    @property
    def model(self) -> Any:
        """The model with the current weights: the caller's own NNX module, else a copy for evaluation."""
        if self._model is None:
            state = self.run.state
            adapter = state.adapter
            if adapter is not None and adapter.in_place:
                self._model = adapter.deliver(state.delivered_params(), state.model_state, state.rngs)
            else:
                self._model = self.run.model
        return self._model

    @property
    def params(self) -> dict[str, Any]:
        """Keras's `params`: `epochs`, `steps` (per epoch; both None if unknown) and `verbose`."""
        return self.run.params

    def stop(self, reason: str = "stopped by a host callback") -> None:
        """Stops the run. Its current epoch is validated and closed first, as in Keras."""
        self.run.stop(reason)

    def on_train_begin(self, logs: Any = None) -> None:
        """Called before the first step, except in a resumed run."""

    def on_train_end(self, logs: Any = None) -> None:
        """Called after the last epoch, however the run ended."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Called before the first step of an epoch."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Called after each epoch and its validation."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Called before each step."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Called after each step, with the values of that step."""
        self.on_batch_end(batch, logs)

    def on_checkpoint_saved(self, checkpoint: Any) -> None:
        """Called soon after a checkpoint is complete, on process 0, for uploads and the like.

        Training continues meanwhile, so `self.model` may be later than the checkpoint.

        Args:
            checkpoint: a `jc.writers.CheckpointSaved` with `path`, `step`, `epoch`, `kind` and `owner`.
        """

    def on_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Keras's alias of `on_train_batch_begin`."""

    def on_batch_end(self, batch: int, logs: Any = None) -> None:
        """Keras's alias of `on_train_batch_end`."""

    def on_test_begin(self, logs: Any = None) -> None:
        """Called before each validation."""

    def on_test_end(self, logs: Any = None) -> None:
        """Called after each validation, with its `val_` metrics."""


HostCallback._pure = FunctionCallback


def call_with_logs(who: str, function: Callable[..., Any], counters: Sequence[int], logs: dict[str, Any]) -> Any:
    """Calls a function with Keras's arguments, and refuses what it adds to `logs`, which nothing would read.

    In Keras, a callback adds to `logs` what those after it then report. Here, all callbacks see the same metrics.

    Raises:
        CallbackError: if it has changed `logs`.
    """
    given = dict(logs)
    result = function(*counters, logs)
    changed = [name for name in logs if name not in given or logs[name] is not given[name]]
    if changed:
        name = changed[0]
        raise CallbackError(
            f"{who} sets logs[{name!r}], which nothing reads: metrics are known before callbacks run. Report a "
            f"function of the model with metrics={{{name!r}: jc.probes.evaluator(fn)}}, one of the step with "
            "jc.probe(fn), or return the value from loss_fn as a metric. To keep it for yourself, use an attribute."
        )
    return result


class Visit(Call):
    """A `Call` that also holds which values are fresh: Keras's `logs` has no values of an earlier validation."""

    fresh: dict[str, Any] = dataclasses.field(default_factory=dict)


class _Visit(Struct):
    """Calls a method with Keras's arguments."""

    visit: Callable[..., None] = static()  # a bound method of the instance, so it compares and hashes by identity
    method: str = static()
    counter: str | None = static()

    def __call__(self, run: Any) -> None:
        counters = () if self.counter is None else (getattr(run, self.counter),)
        self.visit(run, self.method, *counters, run.logs)


class _Ask(Struct):
    """The pure hook whose action calls a method."""

    visit: _Visit = static()

    def __call__(self, state: Any, metrics: Metrics) -> Any:
        values = dict(metrics.values)
        return state, Visit(self.visit, values, {name: metrics.fresh(name) for name in values})


def _check_class(cls: type) -> None:
    """Rejects methods that look like hooks but would never be called.

    A signature is checked by binding the names of the arguments, not by comparing them: Keras calls hooks by position,
    so any names, defaults and `*args` are valid. Only a pure hook's `(self, state, metrics)` is rejected although it
    binds, because it has the right number of arguments and the wrong meaning.
    """
    known = [*_HOOKS, *_ALIASES.values(), _SAVED]
    for name, value in vars(cls).items():
        if name in _CURES:
            raise CallbackError(f"{cls.__name__} defines {name!r}, which is not called. {_CURES[name]}")
        if not name.startswith("on_") or not callable(value) or name in _PREDICT:
            continue
        if name not in known:
            raise CallbackError(
                f"{cls.__name__} defines {name!r}, which is not a hook.{did_you_mean(name, known)} "
                f"Hooks: {', '.join(known)}."
            )
        counter = _HOOKS[name][1] if name in _HOOKS else None if name == _SAVED else "batch"
        expected = ["self", *([counter] if counter else []), "checkpoint" if name == _SAVED else "logs"]
        try:
            signature = inspect.signature(value)
        except (TypeError, ValueError):  # some builtins have no signature
            continue
        try:
            signature.bind(*expected)
            pure = list(signature.parameters) == ["self", "state", "metrics"]
        except TypeError:
            pure = False
        else:
            if not pure:
                continue
        cure = " Pure hooks belong in a subclass of jc.Callback." if pure or "metrics" in signature.parameters else ""
        raise CallbackError(f"{cls.__name__}.{name} takes {signature}, expected ({', '.join(expected)}).{cure}")
