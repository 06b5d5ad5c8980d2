"""`LambdaCallback`: calls impure Python functions in hooks."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from jaxcb._src.callbacks.host_callback import Visit, call_with_logs
from jaxcb._src.core.callback import FunctionCallback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import did_you_mean, takes
from jaxcb._src.utils.pytree import Struct, static


class _Invoke(Struct):
    """Calls a user's function with Keras's arguments. Compares by that function."""

    function: Callable[..., Any] = static()
    counter: str | None = static()

    def __call__(self, run: Any) -> Any:
        counters = () if self.counter is None else (getattr(run, self.counter),)
        return call_with_logs("LambdaCallback", self.function, counters, run.logs)


class _AsCall(Struct):
    """The pure hook whose action calls a user's function."""

    invoke: _Invoke = static()

    def __call__(self, state: Any, metrics: Metrics) -> Any:
        values = dict(metrics.values)
        return state, Visit(self.invoke, values, {name: metrics.fresh(name) for name in values})


_COUNTERS = {
    "on_epoch_begin": "epoch",
    "on_epoch_end": "epoch",
    "on_train_begin": None,
    "on_train_end": None,
    "on_train_batch_begin": "batch",
    "on_train_batch_end": "batch",
    "on_batch_begin": "batch",
    "on_batch_end": "batch",
    "on_test_begin": None,
    "on_test_end": None,
}
# Keras's other name for a hook -> the hook of a callback
_HOOKS = {"on_test_begin": "on_eval_begin", "on_test_end": "on_eval_end"}
_NEVER = ("on_predict_begin", "on_predict_end", "on_predict_batch_begin", "on_predict_batch_end")


class LambdaCallback(FunctionCallback):
    """Calls ordinary, impure Python functions in hooks.

    Each call returns control to the host, so a batch function costs one round trip per step. To only log values, use a
    pure callback with a log action, which has no such cost.

    Args:
        on_epoch_begin: `fn(epoch, logs)`, epoch from 0.
        on_epoch_end: `fn(epoch, logs)`; logs is name -> float.
        on_train_begin: `fn(logs)`.
        on_train_end: `fn(logs)`.
        on_train_batch_begin: `fn(batch, logs)`, batch from 0 within the epoch.
        on_train_batch_end: `fn(batch, logs)`.
        on_batch_begin: another name of `on_train_batch_begin`, as in Keras.
        on_batch_end: another name of `on_train_batch_end`.
        on_test_begin: `fn(logs)`, before each validation.
        on_test_end: `fn(logs)`, after each validation, with its `val_` metrics.
        name: the callback's name.
        **never: Keras's `on_predict_...`, which are not called, because `predict` takes no callbacks.

    Raises:
        TypeError: for an unknown hook, or a function that does not accept these arguments.

    Example:
        >>> import jaxcb as jc
        >>> callback = jc.LambdaCallback(on_epoch_end=lambda epoch, logs: print(epoch, logs["loss"]))
        >>> sorted(callback.hooks())
        ['on_epoch_end']

    Source: `keras.callbacks.LambdaCallback`.
    """

    _builds_itself: ClassVar[bool] = True

    def __init__(  # noqa: PLR0913
        self,
        on_epoch_begin: Callable[[int, dict[str, float]], Any] | None = None,
        on_epoch_end: Callable[[int, dict[str, float]], Any] | None = None,
        on_train_begin: Callable[[dict[str, float]], Any] | None = None,
        on_train_end: Callable[[dict[str, float]], Any] | None = None,
        on_train_batch_begin: Callable[[int, dict[str, float]], Any] | None = None,
        on_train_batch_end: Callable[[int, dict[str, float]], Any] | None = None,
        *,
        on_batch_begin: Callable[[int, dict[str, float]], Any] | None = None,
        on_batch_end: Callable[[int, dict[str, float]], Any] | None = None,
        on_test_begin: Callable[[dict[str, float]], Any] | None = None,
        on_test_end: Callable[[dict[str, float]], Any] | None = None,
        name: str | None = None,
        **never: Any,
    ) -> None:
        _check_never(never)
        given = {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
            "on_batch_begin": on_batch_begin,
            "on_batch_end": on_batch_end,
            "on_test_begin": on_test_begin,
            "on_test_end": on_test_end,
        }
        for short in ("on_batch_begin", "on_batch_end"):
            long = short.replace("on_", "on_train_")
            if given[short] is not None and given[long] is not None:
                raise TypeError(f"LambdaCallback: {short} and {long} are two names of one hook; pass one of them.")
        functions = []
        for hook, function in given.items():
            if function is None:
                continue
            _check_function(hook, function)
            ours = _HOOKS.get(hook, hook.replace("_train_batch_", "_batch_"))
            functions.append((ours, _AsCall(_Invoke(function, _COUNTERS[hook]))))
        self._set("functions", tuple(functions))
        self._set("make_state", None)
        self._set("name", name)


def _check_never(never: dict[str, Any]) -> None:
    """Refuses names that are no hooks; those of `predict` are allowed, because Keras does not call them in `fit`."""
    for name in never:
        if name in _NEVER:
            continue
        cure = did_you_mean(name, _COUNTERS)
        if name.startswith("on_test_batch_"):
            cure = " A validation is a single event here: on_test_begin and on_test_end."
        raise TypeError(f"LambdaCallback: {name!r} is not a hook.{cure} Hooks: {', '.join(_COUNTERS)}.")


def _check_function(hook: str, function: Any) -> None:
    expected = [n for n in (_COUNTERS[hook], "logs") if n]
    if not callable(function):
        raise TypeError(f"LambdaCallback: {hook} must be a function of ({', '.join(expected)}), got {function!r}.")
    if not takes(function, *expected):
        raise TypeError(
            f"LambdaCallback: {hook} is called as fn({', '.join(expected)}), but got a function with the signature "
            f"{inspect.signature(function)}."
        )
