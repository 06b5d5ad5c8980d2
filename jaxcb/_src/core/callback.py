"""`Callback`: a frozen value with pure transitions."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import CallbackError, did_you_mean
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
STEP_HOOKS = ("on_batch_begin", "on_before_update", "on_batch_end")  # those of every step

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
    """Base of all callbacks. Inheriting makes the frozen dataclass and registers it as a pytree.

    A subclass defines `init` (what it remembers: any pytree of arrays) and the hooks that it needs.
    A hook that nobody defines costs nothing. Fields that are numbers can be swept; everything else
    is declared with `jc.static(...)`. Arguments are checked in `__post_init__`.

    Attributes:
        name: the name under which its state is kept; the class name where none is given.

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

    affects_run: ClassVar[bool] = True  # False for one that a resume may add or drop unnoticed, such as a progress bar

    name: str | None = static(default=None, kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        _check_class(cls)
        super().__init_subclass__(**kwargs)

    def init(self) -> Any:
        """Returns the state before the first moment: a pytree of arrays with a fixed form."""
        return ()

    def slots(self) -> Mapping[str, str]:
        """Returns the named weights it needs: slot -> "params", "model" or "optimizer"."""
        return {}

    def probes(self) -> Mapping[str, Any]:
        """Returns the looks inside the step that it needs: metric's name -> `Probe`."""
        return {}

    def setup(self, train_state: Any) -> Any:
        """Returns the train state as it needs it, made of the one before the run; pure and jittable."""
        return train_state

    def hooks(self) -> frozenset[str]:
        """Returns the names of the hooks that it defines."""
        return frozenset(h for h in HOOKS if getattr(type(self), h) is not getattr(Callback, h))

    def on_train_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Before the first step of a run that is not resumed."""
        return state, None

    def on_epoch_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Before the first step of an epoch."""
        return state, None

    def on_batch_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Before each step."""
        return state, None

    def on_before_update(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """When a step's loss and gradients are known and its update is not yet applied."""
        return state, None

    def on_batch_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """After each step, with this step's own values."""
        return state, None

    def on_eval_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """Before a validation."""
        return state, None

    def on_eval_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """After a validation, with its `val_` values."""
        return state, None

    def on_epoch_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """After an epoch and its validation, with the sample-weighted means over the epoch."""
        return state, None

    def on_train_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        """After the last epoch, however the run ended."""
        return state, None


_PARAMETERS = ["self", "state", "metrics"]


def _check_class(cls: type) -> None:
    """Refuses what looks like a callback and would not act as one."""
    if "__init__" in vars(cls) and not cls.__dict__.get("_builds_itself"):
        raise CallbackError(
            f"{cls.__name__} defines __init__, but a callback is a frozen dataclass. Declare its arguments as "
            "fields, check them in __post_init__, and keep what it remembers in the state that init() returns."
        )
    for name, value in vars(cls).items():
        if not name.startswith("on_") or not callable(value):
            continue
        if name not in HOOKS:
            cure = _KERAS_HOOKS.get(name)
            hint = f" It is called {cure!r} here." if cure else did_you_mean(name, HOOKS)
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
    """Base of callbacks that see all members of a sweep at once, and act on each.

    `init` makes the state of one member; a hook gets those of all with a leading member axis, and metrics whose values
    have it too. `metrics.alive` says who still trains, bool (members,), and `metrics.member` the number of each row:
    those of members that have stopped may be gone, so that what is decided must not depend on them. `when` of an action
    has one entry a member, and so have its arrays, unless one value serves all. In `jc.fit` it is refused.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> class StopWorst(jc.PopulationCallback):
        ...     def on_epoch_end(self, state, metrics):
        ...         loss = jnp.where(metrics.alive, metrics["loss"], -jnp.inf)
        ...         return state, jc.actions.Stop(loss == loss.max(), "the worst of all")
        >>> metrics = jc.Metrics({"loss": jnp.array([0.1, 0.3])}, alive=jnp.array([True, True]))
        >>> StopWorst().on_epoch_end((), metrics)[1].when.tolist()
        [False, True]
    """


class FunctionCallback(Callback):
    """The callback that `make_callback` makes of pure functions."""

    functions: tuple[tuple[str, Hook], ...] = static(default=())
    make_state: Callable[[], Any] | None = static(default=None)

    def init(self) -> Any:
        return self.make_state() if self.make_state is not None else ()

    def hooks(self) -> frozenset[str]:
        return frozenset(hook for hook, _ in self.functions)


def _function_hook(hook: str) -> Any:
    def run(self: FunctionCallback, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        function = dict(self.functions).get(hook)
        return function(state, metrics) if function is not None else (state, None)

    return run


for _hook in HOOKS:
    setattr(FunctionCallback, _hook, _function_hook(_hook))


def make_callback(*, init: Callable[[], Any] | None = None, name: str | None = None, **hooks: Hook) -> Callback:
    """Makes a callback of pure functions.

    Args:
        init: a function of nothing that returns the state, a pytree of arrays; no state where None.
        name: the name under which its state is kept, "FunctionCallback" (numbered) where it is None.
        **hooks: functions `(state, metrics) -> (state, actions)` by the name of their hook.

    Returns:
        A callback like any other.

    Raises:
        CallbackError: for a name that is not a hook.

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
    return FunctionCallback(tuple(sorted(hooks.items())), init, name=name)
