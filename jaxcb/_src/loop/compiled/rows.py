"""The parts of a run inside someone else's program: rare work, the rows of `vmap`, and stacked records.

A program does not know that its caller maps over it with `vmap`. So a predicate would differ between the rows, and
each branch would become a select at every step. `any_row` keeps a predicate the same for all rows: a branch is taken
if one row needs it. `keep_others` then keeps what the other rows had.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

from jaxcb._src.core.actions.base import Action
from jaxcb._src.core.actions.logging import LogProgress
from jaxcb._src.core.actions.records import RecordPosition
from jaxcb._src.loop.compiled.program_spec import HookSpec
from jaxcb._src.utils.pytree import select

Stacks = dict[str, tuple[RecordPosition, tuple[Action, ...]]]  # hook -> positions and actions


@custom_vmap
def any_row(predicate: Array) -> Array:
    """Returns whether a predicate holds, bool (); under `vmap` whether it holds in any row, equal for all rows."""
    return predicate


@any_row.def_vmap
def _(axis_size: int, in_batched: list[bool], predicate: Array) -> tuple[Array, bool]:
    del axis_size, in_batched
    return any_row(jnp.any(predicate, axis=0)), False  # again, for the rows of an outer `vmap`


def _with_rows(arrays: Iterable[Array], have: Iterable[bool], size: int) -> list[Array]:
    """Returns arrays that all have the axis of the rows; `have` says which of them have it already."""
    return [x if has else jnp.broadcast_to(x, (size, *x.shape)) for x, has in zip(arrays, have, strict=True)]


@custom_vmap
def _keep(mask: Array, new: list[Array], old: list[Array]) -> list[Array]:
    del mask, old
    return new


@_keep.def_vmap
def _(axis_size: int, in_batched: Any, mask: Array, new: list[Array], old: list[Array]) -> tuple[list[Array], Any]:
    mask_has_rows, new_has, old_has = in_batched
    if not mask_has_rows and not any((*new_has, *old_has)):
        return _keep(mask, new, old), new_has
    new, old = _with_rows(new, new_has, axis_size), _with_rows(old, old_has, axis_size)
    kept = select(mask, new, old) if mask_has_rows else _keep(mask, new, old)
    return kept, [True] * len(new)


def keep_others(mask: Array, new: Any, old: Any) -> Any:
    """Returns `new`; under `vmap`, rows in which `mask` is false keep `old`.

    The caller runs it only where `any_row(mask)` holds, so that it costs nothing in a program of one row.

    Args:
        mask: bool ().
        new: a pytree.
        old: a pytree of the same structure.
    """
    leaves, tree = jax.tree.flatten(new)
    before = jax.tree.leaves(old)
    changed = [i for i, (n, o) in enumerate(zip(leaves, before, strict=True)) if n is not o]
    kept = _keep(mask, [leaves[i] for i in changed], [before[i] for i in changed])
    for i, leaf in zip(changed, kept, strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(tree, leaves)


def run_where(
    mask: Array,
    fn: Callable[[Any], tuple[Any, Stacks]],
    carry: Any,
    nothing: Stacks,
    shown: Callable[[Stacks], Stacks] = lambda records: records,
) -> tuple[Any, Stacks]:
    """Returns `fn(carry)` in rows where `mask` is true, otherwise the carry and no records; skipped if no row needs it.

    Args:
        mask: bool ().
        fn: a function of the carry that returns a new one, and records.
        carry: a pytree.
        nothing: records that do not count, in the form of those that are returned.
        shown: what becomes of the records of `fn`, in the rows that need it.
    """

    def due(carry: Any) -> tuple[Any, Stacks]:
        new, records = fn(carry)
        return keep_others(mask, new, carry), shown(masked(records, mask))

    return jax.lax.cond(any_row(mask), due, lambda carry: (carry, nothing), carry)


def masked(records: Stacks, mask: Any) -> Stacks:
    """Returns records that count only where `mask` is true."""
    return {
        hook: (at, tuple(action.replace(when=action.when & mask) for action in actions))
        for hook, (at, actions) in records.items()
    }


Show = Callable[[Any, RecordPosition], Any]  # shows an action on the host, while the program runs


def show_once(show: Show, action: Action, at: RecordPosition) -> None:
    """Shows an action and its position on the host where it fires: one call for all rows, with their leading axes."""
    leaves, tree = jax.tree.flatten((action, at))

    def on_host(*leaves: Any) -> None:
        show(*jax.tree.unflatten(tree, leaves))

    @custom_vmap
    def emit(when: Array, *leaves: Array) -> Array:
        jax.lax.cond(jnp.any(when), lambda: jax.debug.callback(on_host, *leaves), lambda: None)
        return jnp.zeros((), bool)

    @emit.def_vmap
    def _(axis_size: int, in_batched: list[bool], *given: Array) -> tuple[Array, bool]:
        return emit(*_with_rows(given, in_batched, axis_size)), False

    emit(action.when, *leaves)


class StackedRecords:
    """The records of a program that returns them as stacked arrays; stands where a run has `RecordBuffers`.

    Args:
        hooks: the hooks of the program.
        show: shows progress on the host, while the program runs.
    """

    def __init__(self, hooks: Mapping[str, HookSpec], show: Show) -> None:
        self._hooks, self._shapes, self._show = hooks, dict[str, tuple[Any, ...]](), show
        for hook, own in hooks.items():
            shapes = tuple(s for i in range(len(own.actions)) for s in self._kept(own, i))
            if shapes:
                self._shapes[hook] = shapes

    @staticmethod
    def _kept(own: HookSpec, index: int) -> tuple[Any, ...]:
        """Returns the shapes of what is recorded of an action."""
        if index in own.answers:
            return own.answers[index]
        return (own.actions[index],) if index in own.recorded else ()

    def shown(self, records: Stacks) -> Stacks:
        """Shows progress, and returns the other records. Traced."""
        found = {}
        for hook, (at, actions) in records.items():
            for action in actions:
                if isinstance(action, LogProgress):
                    show_once(self._show, action, at)
            rest = tuple(action for action in actions if not isinstance(action, LogProgress))
            found |= {hook: (at, rest)} if rest else {}
        return found

    def nothing(self, hooks: Iterable[str], *axes: int) -> Stacks:
        """Returns records of these hooks that do not count, with leading axes. Traced."""

        def zeros(shape: Any) -> Array:
            return jnp.zeros((*axes, *shape.shape), shape.dtype)

        word = jax.ShapeDtypeStruct((), jnp.int32)
        kept = {h: tuple(s for s in self._shapes.get(h, ()) if not isinstance(s, LogProgress)) for h in hooks}
        forms = {h: (RecordPosition(word, word, word, word), shapes) for h, shapes in kept.items() if shapes}
        return jax.tree.map(zeros, forms)

    def append(
        self,
        records: Stacks,
        hook: str,
        at: RecordPosition,
        actions: tuple[Action, ...],
        ok: Any,
        answer: Callable[[Any], tuple[Action, ...]] | None = None,
    ) -> Stacks:
        """Adds the recorded actions of a hook call; as `RecordBuffers.append`."""
        if hook not in self._shapes:
            return records
        own, found = self._hooks[hook], list[Action]()
        for index, action in enumerate(actions):
            shapes = self._kept(own, index)
            if index not in own.answers:
                found += [action] if shapes else []
                continue
            assert answer is not None
            nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            found += jax.lax.cond(any_row(action.when), lambda a=action: answer(a), lambda n=nothing: n)
        return {**records, **masked({hook: (at, tuple(found))}, ok)}
