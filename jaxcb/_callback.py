"""`Callback`: a frozen value with pure transitions, and `chain`, the one way to compose them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxcb._actions import Action, as_actions, template_names
from jaxcb._errors import CallbackError, MissingMetricError, did_you_mean
from jaxcb._metrics import Metrics
from jaxcb._struct import Struct, static, strong, strong_tree

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
        ...         return state, jc.Stop(below, "{val_loss:.3f} is low enough")
        >>> callback = StopBelow(0.1)
        >>> state, action = callback.on_epoch_end(callback.init(), jc.Metrics({"val_loss": 0.05}))
        >>> bool(action.when)
        True
    """

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
                "metrics) and returns (state, actions); for impure Python use jc.LambdaCallback."
            )
        free = [
            p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if not any(p.kind == p.VAR_POSITIONAL for p in parameters) and len(free) != len(_PARAMETERS):
            raise CallbackError(
                f"{cls.__name__}.{name} takes ({', '.join(named)}), expected ({', '.join(_PARAMETERS)}), "
                "and returns (state, actions)."
            )


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
        >>> callback = jc.make_callback(on_epoch_end=lambda state, m: (state, jc.Stop(m["loss"] < 0.1)))
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


class Chain(Callback):
    """Several callbacks as one: what `chain` returns. States are kept by name."""

    callbacks: tuple[Callback, ...] = ()
    names: tuple[str, ...] = static(default=())

    def members(self) -> tuple[tuple[str, Callback], ...]:
        """The callbacks with their names, in order."""
        return tuple(zip(self.names, self.callbacks, strict=True))

    def init(self) -> dict[str, Any]:
        return {name: strong_tree(callback.init()) for name, callback in self.members()}

    def slots(self) -> dict[str, str]:
        return {f"{name}/{slot}": of for name, callback in self.members() for slot, of in callback.slots().items()}

    def hooks(self) -> frozenset[str]:
        return frozenset[str]().union(*(c.hooks() for c in self.callbacks))

    def _run(self, hook: str, state: Any, metrics: Metrics) -> tuple[dict[str, Any], tuple[Action, ...]]:
        states, actions = dict(state), ()
        for name, callback in self.members():
            if hook in callback.hooks():
                states[name], own = transition(callback, name, hook, state[name], metrics)
                actions += own
        return states, actions

    def on_train_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        return self._run("on_train_begin", state, metrics)

    def on_epoch_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        return self._run("on_epoch_begin", state, metrics)

    def on_batch_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        return self._run("on_batch_begin", state, metrics)

    def on_before_update(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        return self._run("on_before_update", state, metrics)

    def on_batch_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        return self._run("on_batch_end", state, metrics)

    def on_eval_begin(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        return self._run("on_eval_begin", state, metrics)

    def on_eval_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        return self._run("on_eval_end", state, metrics)

    def on_epoch_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        return self._run("on_epoch_end", state, metrics)

    def on_train_end(self, state: Any, metrics: Metrics) -> tuple[Any, Any]:
        return self._run("on_train_end", state, metrics)


def chain(*callbacks: Callback) -> Chain:
    """Composes callbacks into one.

    All see the same metrics; none sees another's effect within a moment. Chains within chains are laid
    flat, so that grouping changes nothing, and `chain()` does nothing. States and named weights are kept
    by name: `name=` where it is given, else the class name, numbered from the second one on.

    Args:
        *callbacks: callbacks or chains, in the order in which their actions apply.

    Returns:
        A `Chain`, which is a callback.

    Raises:
        TypeError: for what is not a callback.
        ValueError: for two callbacks given the same name.

    Example:
        >>> import jaxcb as jc
        >>> jc.chain(jc.EarlyStopping(), jc.chain(jc.EarlyStopping(monitor="loss"))).names
        ('EarlyStopping', 'EarlyStopping_2')
    """
    flat: list[Callback] = []
    for callback in callbacks:
        if isinstance(callback, Chain):
            flat.extend(callback.callbacks)
        elif isinstance(callback, Callback):
            flat.append(callback)
        else:
            what = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
            cure = (
                " Call it to make one." if isinstance(callback, type) else " Keras classes port with jc.LambdaCallback."
            )
            raise TypeError(f"expected a jaxcb callback, got {what}.{cure}")
    given = [c.name for c in flat if c.name is not None]
    for name in given:
        if given.count(name) > 1:
            raise ValueError(f"{given.count(name)} callbacks are named {name!r}; give each its own name=.")
        if "/" in name:
            raise ValueError(f"a callback's name is also a part of a path and cannot hold '/', got {name!r}.")
    taken, names = set(given), []
    for callback in flat:
        name = base = callback.name or type(callback).__name__
        number = 1
        while callback.name is None and name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        names.append(name)
    return Chain(tuple(flat), tuple(names))


def transition(
    callback: Callback, name: str, hook: str, state: Any, metrics: Metrics
) -> tuple[Any, tuple[Action, ...]]:
    """Runs one hook and holds its result to the fixed form: same structure, shapes and dtypes.

    Weakly typed or wider results are cast back. What fails is reported with callback and hook.
    """
    where = f"{name}.{hook}"
    try:
        result = getattr(callback, hook)(state, metrics)
    except jax.errors.TracerBoolConversionError as error:
        raise CallbackError(
            f"{where} uses a traced value in a Python `if` (or `and`, `or`, `while`). Decide with arrays: "
            "`jnp.where(condition, a, b)` for values, `&` and `|` for booleans, and `when=condition` for actions."
        ) from error
    except MissingMetricError as error:
        raise MissingMetricError(f"{where}: {error}") from None
    except Exception as error:
        error.add_note(f"This happened in the callback {where} (type {type(callback).__name__}).")
        raise
    if not (isinstance(result, tuple) and len(result) == 2):
        raise CallbackError(
            f"{where} returned {type(result).__name__}, expected (state, actions): `return state, None` does nothing."
        )
    new, actions = result
    try:
        flat = as_actions(actions)
    except TypeError as error:
        raise CallbackError(f"{where}: {error}") from None
    return conform(new, state, where), tuple(_complete(a, name, where, metrics) for a in flat)


def _complete(action: Action, owner: str, where: str, metrics: Metrics) -> Action:
    """Types the arrays of an action, names its owner and adds the metrics that its text asks for."""
    changes: dict[str, Any] = {"owner": action.owner or owner}
    if action.template:
        values = dict(getattr(action, "values", {}))
        for name in template_names(getattr(action, action.template)):
            if name not in values and name not in ("epoch", "step"):
                if name not in metrics:
                    names = ", ".join(sorted({*metrics.values, *values, "epoch", "step"}))
                    raise MissingMetricError(
                        f"{where}: the text of its {type(action).__name__} asks for {name!r}; known: {names}."
                    )
                values[name] = metrics[name]
        changes["values"] = values
    try:
        typed = strong_tree(action.replace(**changes))
    except TypeError as error:
        raise CallbackError(f"{where}: {type(action).__name__} holds what is not an array: {error}") from None
    if (typed.when.shape, typed.when.dtype) != ((), jnp.bool_):
        raise CallbackError(
            f"{where}: when= of its {type(action).__name__} is {typed.when.dtype}{list(typed.when.shape)}, expected "
            "one boolean, such as `metrics['loss'] > 1`; reduce several with jnp.any or jnp.all."
        )
    return typed


def conform(new: Any, old: Any, where: str) -> Any:
    """Returns `new` in exactly the form of `old`, or raises an error that names the leaf."""
    old_leaves, old_tree = jax.tree_util.tree_flatten_with_path(old)
    new_leaves, new_tree = jax.tree_util.tree_flatten_with_path(new)
    if old_tree != new_tree:
        known, now = ({jax.tree_util.keystr(p) for p, _ in leaves} for leaves in (old_leaves, new_leaves))
        detail = "; ".join(
            [f"leaf {p} is gone" for p in sorted(known - now)] + [f"leaf {p} is new" for p in sorted(now - known)]
        )
        raise CallbackError(
            f"{where} changed the structure of its state: {detail or f'{new_tree}, expected {old_tree}'}. "
            "The structure is fixed by init()."
        )
    return jax.tree_util.tree_unflatten(
        old_tree,
        [
            _conform_leaf(n, o, f"{where}{jax.tree_util.keystr(path)}")
            for (path, o), (_, n) in zip(old_leaves, new_leaves, strict=True)
        ],
    )


def _conform_leaf(new: Any, old: Any, where: str) -> Any:
    try:
        new = strong(new)
    except TypeError as error:
        raise CallbackError(f"{where}: {error}") from None
    old_dtype = old.dtype if hasattr(old, "dtype") else strong(old).dtype
    if new.shape != jnp.shape(old):
        raise CallbackError(f"{where} has shape {new.shape}, expected {jnp.shape(old)} as at the start.")
    if new.dtype == old_dtype:
        return new
    kinds = (jnp.floating, jnp.signedinteger, jnp.unsignedinteger, jnp.complexfloating)
    if any(jnp.issubdtype(new.dtype, k) and jnp.issubdtype(old_dtype, k) for k in kinds):
        return new.astype(old_dtype)
    raise CallbackError(f"{where} has dtype {new.dtype}, expected {old_dtype} as at the start.")
