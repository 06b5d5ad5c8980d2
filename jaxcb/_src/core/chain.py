"""`chain` composes callbacks; `transition` calls one hook and checks the structure of its result."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.core.actions.base import Action
from jaxcb._src.core.actions.utils import PLACES, as_actions, template_names
from jaxcb._src.core.callback import Callback, PopulationCallback, check_name
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import CallbackError, MissingMetricError
from jaxcb._src.utils.names import leaf_name
from jaxcb._src.utils.pytree import cast_like, static, to_strong_type, to_strong_types


class Chain(Callback):
    """The callback that `chain` returns: several callbacks as one, with their states in a dict by name."""

    callbacks: tuple[Callback, ...] = ()
    names: tuple[str, ...] = static(default=())

    def items(self) -> tuple[tuple[str, Callback], ...]:
        """Returns the callbacks with their names, in order."""
        return tuple(zip(self.names, self.callbacks, strict=True))

    def init(self) -> dict[str, Any]:
        return {name: to_strong_types(callback.init()) for name, callback in self.items()}

    def slots(self) -> dict[str, str]:
        return {f"{name}/{slot}": of for name, callback in self.items() for slot, of in callback.slots().items()}

    def probes(self) -> dict[str, Any]:
        found: dict[str, tuple[str, Any]] = {}
        for name, callback in self.items():
            for key, probe in callback.probes().items():
                other, known = found.setdefault(key, (name, probe))
                if known != probe:
                    raise ValueError(f"{other} and {name} both define the probe {key!r}, but differently.")
        return {key: probe for key, (_, probe) in found.items()}

    def setup(self, train_state: Any) -> Any:
        for _, callback in self.items():
            train_state = callback.setup(train_state)
        return train_state

    def reports(self, state: Any) -> dict[str, Any]:
        return {
            f"{name}/{key}": value
            for name, callback in self.items()
            for key, value in callback.reports(state[name]).items()
        }

    def hooks(self) -> frozenset[str]:
        return frozenset[str]().union(*(c.hooks() for c in self.callbacks))

    def _run(self, hook: str, state: Any, metrics: Metrics) -> tuple[dict[str, Any], tuple[Action, ...]]:
        states, actions = dict(state), ()
        together = metrics.alive is not None
        reports = {name: to_strong_type(value) for name, value in self.reports(states).items()}
        if reports:
            metrics = metrics.replace(
                values={**metrics.values, **reports},
                reported={**metrics.reported, **dict.fromkeys(reports, metrics.step)},
            )
        for name, callback in self.items():
            if hook in callback.hooks() and isinstance(callback, PopulationCallback) == together:
                states[name], taken = transition(callback, name, hook, state[name], metrics)
                actions += taken
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


class AsCallback(Protocol):
    """An object that can be converted to a callback, such as a `HostCallback`."""

    def as_callback(self) -> Callback:
        """Returns the callback."""
        ...


def chain(*callbacks: Callback | AsCallback) -> Chain:
    """Composes callbacks into one.

    All callbacks of a hook call see the same metrics; none sees the effect of another before the next hook call.
    Nested chains are flattened, so grouping changes nothing, and `chain()` does nothing. States and named weights are
    kept by name: `name=` if given, else the class name, numbered from the second one on.

    Args:
        *callbacks: callbacks, chains, or objects with a method `as_callback` that returns a callback (`HostCallback`),
            in the order in which their actions apply.

    Returns:
        A `Chain`, which is a callback.

    Raises:
        TypeError: if an argument is not a callback.
        ValueError: if two callbacks have the same `name=`.

    Example:
        >>> import jaxcb as jc
        >>> jc.chain(jc.EarlyStopping(), jc.chain(jc.EarlyStopping(monitor="loss"))).names
        ('EarlyStopping', 'EarlyStopping_2')
    """
    # Flattening first makes `chain` associative: names are numbered over the flat list, never within a nested chain,
    # so chain(a, chain(b, c)) and chain(a, b, c) keep their states under the same names.
    flat: list[Callback] = []
    for given in callbacks:
        callback: Any = given
        if hasattr(callback, "as_callback") and not isinstance(callback, type):
            callback = callback.as_callback()
        if isinstance(callback, Chain):
            flat.extend(callback.callbacks)
        elif isinstance(callback, Callback):
            check_name(type(callback).__name__, callback.name)
            _check_fields(callback)
            flat.append(callback)
        else:
            what = f"the class {callback.__name__}" if isinstance(callback, type) else f"a {type(callback).__name__}"
            cure = "To port a Keras callback, inherit from jc.HostCallback"
            cure = "Call it to make an instance" if isinstance(callback, type) else cure
            raise TypeError(f"callbacks: expected a jaxcb callback, got {what}. {cure}.")
    fixed = [c.name for c in flat if c.name is not None]
    for name in fixed:
        if fixed.count(name) > 1:
            raise ValueError(f"{fixed.count(name)} callbacks are named {name!r}; give each its own name=.")
        if "/" in name:
            raise ValueError(f"a callback's name is also part of a path and cannot contain '/', got {name!r}.")
    # Explicit names are reserved before any is made up, so that a class name never takes a name the user chose.
    taken, names = set(fixed), []
    for callback in flat:
        name = base = callback.name or type(callback).__name__
        number = 1
        while callback.name is None and name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        names.append(name)
    return Chain(tuple(flat), tuple(names))


def as_chain(callbacks: Any) -> Chain:
    """Returns a chain of the user's `callbacks` argument: several callbacks, one, or None."""
    given: Any = () if callbacks is None else callbacks
    return chain(*given) if _are_several(given) else chain(given)


def _are_several(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, np.ndarray | jax.Array | str | Mapping)


def _check_fields(callback: Callback) -> None:
    """Rejects non-numeric fields that are not static: they can be neither swept nor traced."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(callback):
        if isinstance(leaf, bool) or not isinstance(leaf, int | float | np.number | np.ndarray | jax.Array):
            name = leaf_name(path)
            field = name.split("/")[0]
            raise CallbackError(
                f"{type(callback).__name__}.{name} is a {type(leaf).__name__}, {leaf!r}, not a number. "
                f"Declare the field as `{field}: {type(leaf).__name__} = jc.static(default=...)`."
            )


def transition(
    callback: Callback, name: str, hook: str, state: Any, metrics: Metrics
) -> tuple[Any, tuple[Action, ...]]:
    """Calls one hook and casts its result to the fixed structure, shapes and dtypes of the state.

    Weakly typed or wider results are cast back. An error names the callback and the hook.

    Returns:
        The new state, and the actions as a flat tuple with their owner and the values of their texts filled in.
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
    return cast_like(new, state, where), tuple(_complete(a, name, where, metrics) for a in flat)


def _complete(action: Action, owner: str, where: str, metrics: Metrics) -> Action:
    """Casts the arrays of an action, sets its owner and adds the metrics that its template uses."""
    changes: dict[str, Any] = {"owner": action.owner or owner}
    if action.template:
        values = dict(getattr(action, "values", {}))
        text = getattr(action, action.template)
        for name in metrics if callable(text) else template_names(text):
            if name not in values and name not in PLACES:
                if name not in metrics:
                    names = ", ".join(sorted({*metrics.values, *values, *PLACES}))
                    raise MissingMetricError(
                        f"{where}: the text of its {type(action).__name__} uses {name!r}; available: {names}."
                    )
                values[name] = metrics[name]
        changes["values"] = values
    try:
        typed = to_strong_types(action.replace(**changes))
    except TypeError as error:
        raise CallbackError(f"{where}: {type(action).__name__} has a field that is not an array: {error}") from None
    shape = () if metrics.alive is None else metrics.alive.shape
    if shape:
        typed = jax.tree.map(lambda x: x if x.shape[:1] == shape else jnp.broadcast_to(x, shape + x.shape), typed)
    if (typed.when.shape, typed.when.dtype) != (shape, jnp.bool_):
        raise CallbackError(
            f"{where}: when= of its {type(action).__name__} is {typed.when.dtype}{list(typed.when.shape)}, expected "
            f"one boolean{' per member' if shape else ''}, such as `metrics['loss'] > 1`; reduce several with jnp.any "
            "or jnp.all."
        )
    return typed


def stacked_callbacks(chains: Sequence[Chain]) -> tuple[Chain, tuple[int | None, ...]]:
    """Stacks chains of equal structure into one.

    Returns:
        A chain whose differing numbers are arrays with a leading axis over the given chains, and for each leaf its
        vmap axis: 0 where the chains differ, None where they are equal.
    """
    columns = list(zip(*(jax.tree.leaves(c) for c in chains), strict=True))
    leaves, axes = [], []
    for column in columns:
        same = all(np.array_equal(x, column[0], equal_nan=True) for x in column)
        floats = any(isinstance(x, float) for x in column)  # then an int among them is a float as well
        if not same and all(isinstance(x, int | float) for x in column):
            # by numpy: a stack of thousands of arrays is a program with an operand for each, which compiles for minutes
            leaves.append(to_strong_types(np.asarray([float(x) if floats else x for x in column])))
        else:
            leaves.append(column[0] if same else jnp.stack(to_strong_types(column)))
        axes.append(None if same else 0)
    return jax.tree.unflatten(jax.tree.structure(chains[0]), leaves), tuple(axes)
