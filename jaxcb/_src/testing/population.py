"""Laws of population callbacks."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from jaxcb._src.core.actions.control import Exploit
from jaxcb._src.core.callback import HOOKS, PopulationCallback
from jaxcb._src.core.chain import transition
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.testing.compare import to_host, to_numpy
from jaxcb._src.testing.drive import for_all
from jaxcb._src.testing.tracing import AccessedNames, AnyNames
from jaxcb._src.utils.pytree import to_strong_types

_MEMBERS, _MOMENTS = 6, 4


class _History(NamedTuple):
    """The metrics that a population reports."""

    values: np.ndarray  # float32 (rows, names, members)
    last: np.ndarray  # int (members,), the last row in which each member trains


def check_population(
    callback: PopulationCallback, *, metrics: Iterable[str] | None = None, max_examples: int | None = None
) -> None:
    """Checks that a population callback keeps its laws.

    1. Purity, one meaning and fixed form: eager and `jit` agree, twice, and no structure, shape or dtype changes.
    2. Equal treatment: another order of the members gives the same decisions, in that order.
    3. Packing: no action fires for members that no longer train, and without their rows the decisions for the others
       are the same.

    Args:
        callback: the callback.
        metrics: names of the metrics that it reads, one number per member each; found by tracing if None.
        max_examples: number of Hypothesis examples; that of the active profile if None.

    Raises:
        AssertionError: if a law is broken; names the law, the hook and the leaf.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> jc.testing.check_population(jc.callbacks.SuccessiveHalving(), max_examples=2)
    """
    hooks = [hook for hook in HOOKS if hook in callback.hooks()]
    names = tuple(sorted(metrics if metrics is not None else _names_of(callback, hooks)))

    def one(state: Any, seen: Metrics) -> Any:
        found = {}
        for hook in hooks:
            state, found[hook] = transition(callback, type(callback).__name__, hook, state, seen)
        return state, found

    jitted = jax.jit(one)

    def run(history: _History, rows: np.ndarray, step: Any) -> list[Any]:
        """Returns states and actions of each row for these members; also a packed run starts with all of them."""
        state = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rows), *x.shape)), to_strong_types(callback.init()))
        out = []
        for index in range(_MOMENTS):
            state, actions = step(state, _seen(history, names, index, rows))
            out.append((state, actions))
        return out

    def check(history: _History) -> None:
        everyone = np.arange(_MEMBERS)
        plain = run(history, everyone, jitted)
        for label, other in (("eager", run(history, everyone, one)), ("run again", run(history, everyone, jitted))):
            _same("purity and one meaning", callback, plain, other, everyone, everyone, label)
        _check_stopped(callback, history, plain)
        order = np.roll(everyone, 2)
        _same("equal treatment", callback, plain, run(history, order, jitted), everyone, order, "another order")
        first = np.flatnonzero(history.last >= 1)  # the members that train after the first row
        if 0 < len(first) < _MEMBERS:
            state, _ = plain[0]
            packed = [(jax.tree.map(lambda x: x[first], state), None)]
            for index in range(1, _MOMENTS):
                packed.append(jitted(packed[-1][0], _seen(history, names, index, first)))
            _same("packing", callback, plain[1:], packed[1:], everyone, first, "without stopped members")

    shape = (_MOMENTS, len(names), _MEMBERS)
    number = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 2.0, float("nan")])
    values = st.lists(number, min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
    last = st.lists(st.integers(0, _MOMENTS), min_size=_MEMBERS, max_size=_MEMBERS)
    histories = st.builds(lambda v, e: _History(np.reshape(np.float32(v), shape), np.asarray(e)), values, last)
    for_all(check, histories, max_examples)


def _seen(history: _History, names: tuple[str, ...], index: int, rows: np.ndarray) -> Metrics:
    values = {name: jnp.asarray(history.values[index, i, rows]) for i, name in enumerate(names)}
    alive = jnp.asarray(history.last[rows] >= index)
    return Metrics(values, step=index + 1, epoch=index, alive=alive, member=jnp.asarray(rows, jnp.int32))


def _names_of(callback: PopulationCallback, hooks: list[str]) -> set[str]:
    asked = AccessedNames()
    column, clock = jnp.zeros(_MEMBERS, jnp.float32), jnp.zeros((), jnp.int32)
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (_MEMBERS, *x.shape)), to_strong_types(callback.init()))
    seen = Metrics._make(
        values=AnyNames(asked, column),
        reported=AnyNames(AccessedNames(), clock),
        step=clock,
        epoch=clock,
        total_steps=clock,
        closes_epoch=clock == 0,
        host={},
        alive=jnp.ones(_MEMBERS, bool),
        member=jnp.arange(_MEMBERS, dtype=jnp.int32),
    )
    for hook in hooks:
        transition(callback, type(callback).__name__, hook, state, seen)
    return asked.names


def _check_stopped(callback: Any, history: _History, plain: list[Any]) -> None:
    """Checks that no action fires for members that no longer train."""
    for index, (_, actions) in enumerate(plain):
        dead = index > history.last
        for hook, listed in actions.items():
            for action in listed:
                if np.any(np.asarray(action.when) & dead):
                    raise _broken("packing", callback, f"{hook}: {type(action).__name__} fires for a stopped member")


def _same(
    law: str,
    callback: Any,
    plain: list[Any],
    other: list[Any],
    rows: np.ndarray,
    others: np.ndarray,
    label: str,
) -> None:
    """Compares the results of two runs, member by member."""
    at = np.asarray([int(np.flatnonzero(rows == member)[0]) for member in others])
    for index, (one, two) in enumerate(zip(plain, other, strict=True)):
        first = _by_member(one, rows, at)
        second = _by_member(two, others, np.arange(len(others)))
        if jax.tree.structure(first) != jax.tree.structure(second):
            raise _broken(law, callback, f"the structure differs at row {index} ({label})")
        leaves = jax.tree_util.tree_leaves_with_path(first)
        for (path, a), b in zip(leaves, jax.tree.leaves(second), strict=True):
            a, b = to_numpy(a), to_numpy(b)
            if (
                a.shape != b.shape
                or a.dtype != b.dtype
                or not np.allclose(a, b, rtol=1e-5, equal_nan=a.dtype.kind == "f")
            ):
                where = jax.tree_util.keystr(path)
                raise _broken(law, callback, f"{where} at row {index} is {a.tolist()}, and {b.tolist()} {label}")


def _by_member(given: Any, rows: np.ndarray, at: np.ndarray) -> Any:
    """Returns states and actions in another order of the members, without the payload of actions that do not fire."""
    state, actions = to_host(given)

    def named(action: Any) -> Any:
        # the payload of an action that does not fire has no meaning
        when = np.asarray(action.when)
        if isinstance(action, Exploit):
            action = action.replace(source=rows[action.source])

        def kept(x: Any) -> Any:
            return np.where(when.reshape(-1, *(1,) * (np.ndim(x) - 1)), x, np.zeros_like(x))

        return jax.tree.map(kept, action).replace(when=when)

    actions = {hook: tuple(named(a) for a in listed) for hook, listed in actions.items()}
    return jax.tree.map(lambda x: x[at], (state, actions))


def _broken(law: str, callback: Any, detail: str) -> AssertionError:
    return AssertionError(f"The law of {law} is broken by {type(callback).__name__}: {detail}")
