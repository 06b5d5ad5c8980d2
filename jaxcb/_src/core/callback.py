"""`Callback`: a frozen value with pure transitions."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import CallbackError, check_text, did_you_mean, shown
from jaxcb._src.utils.pytree import Struct, static

HOOKS = (
    "on_train_begin",
    "on_epoch_begin",
    "on_batch_begin",
    "on_before_update",
    "on_batch_end",
    "on_eval_begin",
    "on_eval_end",
    "on_epoch_end",
    "on_train_end",
)
STEP_HOOKS = ("on_batch_begin", "on_before_update", "on_batch_end")  # called in every step
BOUNDARY_HOOKS = tuple(hook for hook in HOOKS if hook not in STEP_HOOKS)  # called between steps

_KERAS_HOOKS = {
    "on_train_batch_begin": "on_batch_begin",
    "on_train_batch_end": "on_batch_end",
    "on_test_begin": "on_eval_begin",
    "on_test_end": "on_eval_end",
}


class Hook(Protocol):
    """A pure transition `(state, metrics) -> (state, actions)`."""

    def __call__(self, state: Any, metrics: Metrics, /) -> tuple[Any, Any]: ...


class Callback(Struct):
    """Base class of all callbacks; a subclass becomes a frozen dataclass and is registered as a pytree.

    A subclass defines `init`, which returns its initial state (any pytree of arrays), and the hooks that it needs.
    A hook that no callback defines costs nothing. Fields that are numbers can be swept; declare all others with
    `jc.static(...)`. Check the arguments in `__post_init__`.

    Attributes:
        name: the name under which the state is kept; the class name if None.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> class StopBelow(jc.Callback):
        ...     threshold: float
        ...     monitor: str = jc.static(default="val_loss")
        ...     def on_epoch_end(self, state, metrics):
        ...         below = metrics[self.monitor] < self.threshold
        ...         return state, jc.actions.Stop(below, "{val_loss:.3f} is low enough")
        >>> callback = StopBelow(0.1)
        >>> state, action = callback.on_epoch_end(callback.init(), jc.Metrics({"val_loss": 0.05}))
        >>> bool(action.when)
        True
    """

    affects_run: ClassVar[bool] = True  # False if a resumed run may add or drop it silently, such as a progress bar
    logs_only: ClassVar[bool] = False  # True for a logger: no hook returns an action that could change the run

    name: str | None = static(default=None, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        _check_class(cls)
        super().__init_subclass__(**kwargs)

    def init(self) -> Any:
        """Returns the initial state: a pytree of arrays whose structure, shapes and dtypes never change."""
        return ()

    def slots(self) -> Mapping[str, str]:
        """Returns the named weights that the callback needs: slot -> "params", "model" or "optimizer"."""
        return {}

    def probes(self) -> Mapping[str, Any]:
        """Returns the probes of the training step that the callback needs: metric name -> `Probe`."""
        return {}

    def reports(self, state: Any) -> Mapping[str, Any]:
        """Returns what the callback reports of its state as metrics: name -> scalar, such as the patience left.

        Each joins the metrics of every hook call as `NAME/name`, with the name of the callback, as it was before that
        hook call. Elementwise: in a sweep, the arrays may have a member axis.
        """
        return {}

    def setup(self, train_state: Any) -> Any:
        """Returns the train state to start the run with, given the user's; pure and jittable."""
        return train_state

    def checkpoint_listener(self) -> Callable[[Any, Any], Any] | None:
        """Returns the function that is told of complete checkpoints, or None.

        It is impure Python on the host: `fn(run, checkpoint)` with the live `Run` and a `jc.writers.CheckpointSaved`.
        It is called on the run's thread, between two dispatches, on process 0.
        """
        return None

    def hooks(self) -> frozenset[str]:
        """Returns the names of the hooks that the callback defines."""
        return frozenset(h for h in HOOKS if getattr(type(self), h) is not getattr(Callback, h))

    def on_train_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Called before the first step, except in a resumed run."""
        return state, None

    def on_epoch_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Called before the first step of an epoch."""
        return state, None

    def on_batch_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Called before each step."""
        return state, None

    def on_before_update(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Called once a step's loss and gradients are computed, before its update is applied."""
        return state, None

    def on_batch_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Called after each step, with the values of that step."""
        return state, None

    def on_eval_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Called before each validation."""
        return state, None

    def on_eval_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Called after each validation, with its `val_` metrics."""
        return state, None

    def on_epoch_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Called after each epoch and its validation, with means over the epoch, weighted by rows."""
        return state, None

    def on_train_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Called after the last epoch, however the run ended."""
        return state, None


_PARAMETERS = ["self", "state", "metrics"]


def _check_class(cls: type) -> None:
    """Rejects a class that looks like a callback but would not work as one.

    The mistakes that it finds (an `__init__`, a misspelt hook, Keras's signature) would otherwise be silent: the hook
    would never be called, or would fail inside a trace, far from its cause.
    """
    if "__init__" in vars(cls) and not cls.__dict__.get("_builds_itself"):
        raise CallbackError(
            f"{cls.__name__} defines __init__, but a callback is a frozen dataclass. Declare its arguments as "
            "fields, check them in __post_init__, and keep changing values in the state that init() returns."
        )
    for name, value in vars(cls).items():
        if not name.startswith("on_") or not callable(value):
            continue
        if name not in HOOKS:
            cure = _KERAS_HOOKS.get(name)
            hint = f" The hook's name here is {cure!r}." if cure else did_you_mean(name, HOOKS)
            raise CallbackError(
                f"{cls.__name__} defines {name!r}, which is not a hook.{hint} Hooks: {', '.join(HOOKS)}."
            )
        parameters = list(inspect.signature(value).parameters.values())
        named = [p.name for p in parameters]
        if "logs" in named:
            raise CallbackError(
                f"{cls.__name__}.{name}({', '.join(named)}) has Keras's signature. A pure hook is {name}(self, state, "
                "metrics) and returns (state, actions); for impure Python use jc.HostCallback or jc.LambdaCallback."
            )
        free = [
            p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if not any(p.kind == p.VAR_POSITIONAL for p in parameters) and len(free) != len(_PARAMETERS):
            raise CallbackError(
                f"{cls.__name__}.{name} takes ({', '.join(named)}), expected ({', '.join(_PARAMETERS)}), "
                "and returns (state, actions)."
            )


class PopulationCallback(Callback):
    """Base class of callbacks that see all members of a sweep at once and act on each of them.

    `init` returns the state of one member. A hook receives the states of all members, with a leading member axis, and
    metrics whose values have that axis too. `metrics.alive`, bool (members,), is true for members that still train;
    `metrics.member` is the number of each row. Rows of stopped members may be removed, so a decision must not depend
    on them. `when` and the arrays of an action have one entry per member; a value without that axis applies to all
    members. `jc.fit` rejects such callbacks.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> class StopWorst(jc.PopulationCallback):
        ...     def on_epoch_end(self, state, metrics):
        ...         loss = jnp.where(metrics.alive, metrics["loss"], -jnp.inf)
        ...         return state, jc.actions.Stop(loss == loss.max(), "highest loss of all members")
        >>> metrics = jc.Metrics({"loss": jnp.array([0.1, 0.3])}, alive=jnp.array([True, True]))
        >>> StopWorst().on_epoch_end((), metrics)[1].when.tolist()
        [False, True]
    """


class FunctionCallback(Callback):
    """The callback that `make_callback` returns."""

    functions: tuple[tuple[str, Hook], ...] = static(default=())
    make_state: Callable[[], Any] | None = static(default=None)
    listener: Callable[[Any, Any], Any] | None = static(default=None)

    def init(self) -> Any:
        return self.make_state() if self.make_state is not None else ()

    def checkpoint_listener(self) -> Callable[[Any, Any], Any] | None:
        return self.listener

    def hooks(self) -> frozenset[str]:
        return frozenset(hook for hook, _ in self.functions)


def _function_hook(hook: str) -> Any:
    def run(self: FunctionCallback, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        function = dict(self.functions).get(hook)
        return function(state, metrics) if function is not None else (state, None)

    return run


for _hook in HOOKS:
    setattr(FunctionCallback, _hook, _function_hook(_hook))


def check_name(owner: str, name: Any) -> None:
    """Checks a callback's name, under which its state is kept.

    Raises:
        TypeError: if it is neither a text nor None.
    """
    if name is not None:
        check_text(owner, "name", name)


def make_callback(*, init: Callable[[], Any] | None = None, name: str | None = None, **hooks: Hook) -> Callback:
    """Makes a callback from pure functions.

    Args:
        init: a function without arguments that returns the initial state, a pytree of arrays; None for no state.
        name: the name under which the state is kept; "FunctionCallback" (numbered) if None.
        **hooks: hook name -> function `(state, metrics) -> (state, actions)`.

    Returns:
        A callback with these hooks.

    Raises:
        CallbackError: if a name is not a hook.
        TypeError: if `init` or a hook is not a function, or `name` is not a string.

    Example:
        >>> import jaxcb as jc
        >>> callback = jc.make_callback(on_epoch_end=lambda state, m: (state, jc.actions.Stop(m["loss"] < 0.1)))
        >>> state, action = callback.on_epoch_end(callback.init(), jc.Metrics({"loss": 0.05}))
        >>> bool(action.when)
        True
    """
    for hook in hooks:
        if hook not in HOOKS:
            raise CallbackError(
                f"make_callback got {hook!r}, which is not a hook.{did_you_mean(hook, HOOKS)} "
                f"Hooks: {', '.join(HOOKS)}."
            )
        if not callable(hooks[hook]):
            raise TypeError(
                f"make_callback: {hook} must be a function (state, metrics) -> (state, actions), got "
                f"{shown(hooks[hook])}."
            )
    if init is not None and not callable(init):
        raise TypeError(
            f"make_callback: init must be a function without arguments that returns the state, got {shown(init)}."
        )
    check_name("make_callback", name)
    return FunctionCallback(tuple(sorted(hooks.items())), init, name=name)
