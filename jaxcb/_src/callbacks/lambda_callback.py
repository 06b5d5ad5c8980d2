"""`LambdaCallback`: calls impure Python functions in hooks."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from jaxcb._src.core.actions.host import Call
from jaxcb._src.core.callback import FunctionCallback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.pytree import Struct, static


class _Invoke(Struct):
    """Calls a user's function with Keras's arguments. Compares by that function."""

    function: Callable[..., Any] = static()
    counter: str | None = static()

    def __call__(self, run: Any) -> Any:
        if self.counter is None:
            return self.function(run.logs)
        return self.function(getattr(run, self.counter), run.logs)


class _AsCall(Struct):
    """The pure hook whose action calls a user's function."""

    invoke: _Invoke = static()

    def __call__(self, state: Any, metrics: Metrics) -> Any:
        return state, Call(self.invoke, dict(metrics.values))


_COUNTERS = {
    "on_epoch_begin": "epoch",
    "on_epoch_end": "epoch",
    "on_train_begin": None,
    "on_train_end": None,
    "on_train_batch_begin": "batch",
    "on_train_batch_end": "batch",
}


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
        name: the callback's name.

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

    def __init__(
        self,
        on_epoch_begin: Callable[[int, dict[str, float]], Any] | None = None,
        on_epoch_end: Callable[[int, dict[str, float]], Any] | None = None,
        on_train_begin: Callable[[dict[str, float]], Any] | None = None,
        on_train_end: Callable[[dict[str, float]], Any] | None = None,
        on_train_batch_begin: Callable[[int, dict[str, float]], Any] | None = None,
        on_train_batch_end: Callable[[int, dict[str, float]], Any] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        given = {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
        }
        functions = []
        for hook, function in given.items():
            if function is None:
                continue
            _check_function(hook, function)
            functions.append((hook.replace("_train_batch_", "_batch_"), _AsCall(_Invoke(function, _COUNTERS[hook]))))
        self._set("functions", tuple(functions))
        self._set("make_state", None)
        self._set("name", name)


def _check_function(hook: str, function: Any) -> None:
    expected = [n for n in (_COUNTERS[hook], "logs") if n]
    if not callable(function):
        raise TypeError(f"LambdaCallback: {hook} must be a function of ({', '.join(expected)}), got {function!r}.")
    try:
        inspect.signature(function).bind(*expected)
    except TypeError:
        raise TypeError(
            f"LambdaCallback: {hook} is called as fn({', '.join(expected)}), but got a function with the signature "
            f"{inspect.signature(function)}."
        ) from None
    except ValueError:  # some builtins, such as print, have no signature
        pass
