"""Laws 4, 5 and 7: behaviour over time does not depend on later metrics, on resuming or on chunks."""

import itertools
import pickle
from collections.abc import Iterable
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.core.callback import Callback
from jaxcb._src.testing.compare import difference, is_key, stack, to_numpy
from jaxcb._src.testing.drive import CAPACITY, Subject, broken, for_all, subject_of
from jaxcb._src.testing.streams import Stream, streams


def check_causality(
    callback: Callback | Subject, *, metrics: Iterable[str] | None = None, max_examples: int | None = None
) -> None:
    """Law 4: the actions of a hook call depend only on the metrics up to that call.

    Args:
        callback: any callback.
        metrics: names of the metrics that it reads; found by tracing if None.
        max_examples: number of Hypothesis examples.

    Raises:
        AssertionError: if the law is broken; names the callback, hook, leaf and row.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> jc.testing.check_causality(jc.TerminateOnNaN(), max_examples=2)
    """
    subject = subject_of(callback, metrics)

    def check(one: Stream, other: Stream, cut: int) -> None:
        cut = min(cut, len(one), len(other))
        rows, others = subject.row_list(one), subject.row_list(other)
        # the end of a run is known in advance, so it must not differ between the two futures
        end = rows[0].now.total_steps
        others = [r.replace(now=r.now.replace(total_steps=end)) for r in others]
        a = subject.eager(rows)
        b = subject.eager(rows[:cut] + others[cut:])
        if said := difference(_until(a, cut), _until(b, cut), labels=("one future", "another future")):
            raise broken("causality", subject, said)

    stream = streams(subject.names, min_size=2, max_size=5)
    for_all(check, st.tuples(stream, stream, st.integers(1, 4)), max_examples, spread=True)


def check_resume(
    callback: Callback | Subject, *, metrics: Iterable[str] | None = None, max_examples: int | None = None
) -> None:
    """Law 5: if its state is saved and restored at any point, the rest of the run is the same.

    The state is converted to numpy and pickled, and restored into a callback that has meanwhile run to the end.

    Args:
        callback: any callback.
        metrics: names of the metrics that it reads; found by tracing if None.
        max_examples: number of Hypothesis examples.

    Raises:
        AssertionError: if the law is broken; names the callback, hook, leaf and row.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> jc.testing.check_resume(jc.TerminateOnNaN(), max_examples=2)
    """
    subject = subject_of(callback, metrics)

    def check(stream: Stream, cut: int) -> None:
        rows, cut = subject.row_list(stream), min(cut, len(stream) - 1)
        whole = list(subject.eager_moments(rows))
        state = whole[cut - 1][subject.hooks[-1]]["state"] if subject.hooks else subject.init()
        rest = subject.eager(rows[cut:], _through_disk(state))
        if said := difference(stack(whole[cut:]), rest, labels=("in one run", f"resumed after row {cut - 1}")):
            raise broken("resume", subject, said)

    stream = streams(subject.names, min_size=2, max_size=5)
    for_all(check, st.tuples(stream, st.integers(1, 4)), max_examples, spread=True)


def check_chunks(
    callback: Callback | Subject, *, metrics: Iterable[str] | None = None, max_examples: int | None = None
) -> None:
    """Law 7: at one compiled capacity, splitting a run into chunks changes no bit.

    Args:
        callback: any callback.
        metrics: names of the metrics that it reads; found by tracing if None.
        max_examples: number of Hypothesis examples.

    Raises:
        AssertionError: if the law is broken; names the callback, hook, leaf and row.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> jc.testing.check_chunks(jc.TerminateOnNaN(), max_examples=2)
    """
    subject = subject_of(callback, metrics)

    def check(stream: Stream, cuts: set[int]) -> None:
        rows = subject.rows(stream)
        _, whole = subject.scanned(rows)
        state, parts, bounds = subject.init(), [], [0, *sorted(cuts), CAPACITY]
        for start, stop in itertools.pairwise(bounds):
            state, seen = subject.scanned(rows, state, start, stop)
            parts.append(jax.tree.map(lambda x, a=start, b=stop: to_numpy(x)[a:b], seen))
        joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        if said := difference(whole, joined, labels=("in one chunk", f"cut at {sorted(cuts)}")):
            raise broken("chunk invariance", subject, said)

    cuts = st.sets(st.integers(1, CAPACITY - 1), max_size=3)
    for_all(check, st.tuples(streams(subject.names), cuts), max_examples, spread=True)


def _through_disk(state: Any) -> Any:
    """Returns a state as it is after writing and reading it: its structure, and the bytes of its arrays."""
    leaves, tree = jax.tree.flatten(state)
    read = pickle.loads(pickle.dumps([to_numpy(x) for x in leaves]))
    back = [
        jax.random.wrap_key_data(jnp.asarray(r)) if is_key(x) else jnp.asarray(r)
        for x, r in zip(leaves, read, strict=True)
    ]
    return jax.tree.unflatten(tree, back)


def _until(seen: Any, cut: int) -> Any:
    return jax.tree.map(lambda x: x[:cut], seen)
