"""Laws 2 and 3: one meaning however it is run, and one form at every step."""

from collections.abc import Iterable
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np

from jaxcb._src.core.actions.base import Action, ControlAction
from jaxcb._src.core.actions.host import Backup, Call, Checkpoint
from jaxcb._src.core.callback import Callback
from jaxcb._src.testing.compare import difference, to_host
from jaxcb._src.testing.drive import Subject, broken, for_all, subject_of
from jaxcb._src.testing.streams import Stream, streams
from jaxcb._src.utils.errors import CallbackError

_RTOL = 1e-5
DECISIONS = (ControlAction, Backup, Call, Checkpoint)  # what is more than logging


def check_one_meaning(
    callback: Callback | Subject, *, metrics: Iterable[str] | None = None, max_examples: int | None = None
) -> None:
    """Law 2: eager, `jit`, `lax.scan` and each row of `vmap` give the same states and actions.

    Results must be bitwise equal, except denormal numbers, which XLA may flush to zero, and floats that
    a rounding operation such as a multiplication affects: these must agree to a relative 1e-5, on streams without ties.
    In the scan the callback's own numbers are traced too, as in a sweep.

    Args:
        callback: any callback.
        metrics: names of the metrics that it reads; found by tracing if None.
        max_examples: number of Hypothesis examples.

    Raises:
        AssertionError: if the law is broken; names the callback, hook, leaf and row.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> jc.testing.check_one_meaning(jc.TerminateOnNaN(), max_examples=2)
    """
    subject = subject_of(callback, metrics)
    rtol = [_RTOL if r else 0.0 for r in jax.tree.leaves(subject.rounded)]

    def same(a: Any, b: Any, name: str) -> None:
        if said := difference(a, b, labels=("eager", name), rtol=rtol, flush=True):
            raise broken("one meaning", subject, said)

    def check(members: list[Stream]) -> None:
        rows = [subject.rows(s) for s in members]
        size = len(members[0])
        moments = subject.row_list(members[0])
        eager = subject.eager(moments)
        same(eager, subject.jitted(moments), "jit")
        try:
            scans = [to_host(subject.scanned(r)[1]) for r in rows]
        except (TypeError, CallbackError) as error:
            detail = f"its fields cannot be traced; declare them with jc.static(...): {error}"
            raise broken("one meaning", subject, detail) from error
        same(eager, jax.tree.map(lambda x: x[:size], scans[0]), "scan")
        vmapped = to_host(subject.vmapped(jax.tree.map(lambda *x: np.stack(x), *rows)))
        for member, scan in enumerate(scans):
            row = jax.tree.map(lambda x, m=member: x[m], vmapped)
            if said := difference(scan, row, labels=("scan", f"row {member} of vmap"), rtol=rtol, flush=True):
                raise broken("one meaning", subject, said)

    stream = streams(subject.names, ties=not any(jax.tree.leaves(subject.rounded)))
    for_all(check, st.lists(stream, min_size=2, max_size=2), max_examples)


def check_fixed_form(
    callback: Callback | Subject, *, metrics: Iterable[str] | None = None, max_examples: int | None = None
) -> None:
    """Law 3: structure, shapes and dtypes of state and actions never change; a run traces each hook once.

    A class with `logs_only = True` returns no action that changes the run, saves it or calls a function.

    Args:
        callback: any callback.
        metrics: names of the metrics that it reads; found by tracing if None.
        max_examples: number of Hypothesis examples.

    Raises:
        AssertionError: if the law is broken; names the callback, hook and leaf.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> jc.testing.check_fixed_form(jc.TerminateOnNaN(), max_examples=2)
    """
    subject = subject_of(callback, metrics)
    stream = Stream(dict.fromkeys(subject.names, (0.5, 0.25, None)), (True, False, True), (1, 2, 3))
    fresh = Subject(subject.callback, subject.names)
    rows = fresh.row_list(stream)
    fresh.jitted(rows)
    fresh.jitted(rows, to_host(fresh.init()))  # with host arrays, as in a run restored from disk
    for hook, count in fresh.traces.items():
        if count != 1:
            raise broken("fixed form", subject, f"{hook} was traced {count} times over one run, expected once")

    expected = jax.eval_shape(lambda s, r: subject.run_row(subject.callback, s, r)[1], subject.init(), rows[0])
    if subject.callback.logs_only:
        _check_logs_only(subject, expected)

    def check(stream: Stream) -> None:
        rows = subject.row_list(stream)
        try:
            for index, seen in enumerate(subject.eager_moments(rows)):
                for hook in subject.hooks:
                    if said := _form_changed(expected[hook], seen[hook]):
                        raise broken("fixed form", subject, f"{hook} at row {index}: {said}")
        except CallbackError as error:
            raise broken("fixed form", subject, str(error)) from error

    for_all(check, streams(subject.names, max_size=4), max_examples)


def _check_logs_only(subject: Subject, expected: Any) -> None:
    """Checks that a class that says so only logs."""
    for hook, seen in expected.items():
        for action in jax.tree.leaves(seen, is_leaf=lambda x: isinstance(x, Action)):
            if isinstance(action, DECISIONS):
                detail = f"{hook} returns {type(action).__name__}, but the class says logs_only = True"
                raise broken("fixed form", subject, detail)


def _form_changed(expected: Any, seen: Any) -> str | None:
    leaves, tree = jax.tree_util.tree_flatten_with_path(seen)
    if tree != jax.tree.structure(expected):
        return f"the structure of its actions is {tree}, expected {jax.tree.structure(expected)}"
    for (path, leaf), want in zip(leaves, jax.tree.leaves(expected), strict=True):
        now, then = (f"{x.dtype}{list(x.shape)}" for x in (leaf, want))
        if now != then:
            return f"{jax.tree_util.keystr(path)} is {now}, expected {then}"
    return None
