"""Law 1, purity: the same input gives the same output, and nothing else is read or written."""

from collections.abc import Iterable
from typing import Any

import jax

from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import transition
from jaxcb._src.testing.compare import difference, to_host
from jaxcb._src.testing.drive import SEES_PREVIOUS, Subject, broken, for_all, subject_of
from jaxcb._src.testing.streams import Stream, streams
from jaxcb._src.testing.tracing import another_world, same_program


def check_purity(
    callback: Callback | Subject, *, metrics: Iterable[str] | None = None, max_examples: int | None = None
) -> None:
    """Law 1: same input, same output; no input is changed; no clock, file or random generator is read.

    Args:
        callback: any callback.
        metrics: names of the metrics that it reads; found by tracing if None.
        max_examples: number of Hypothesis examples.

    Raises:
        AssertionError: if the law is broken; names the callback, hook and leaf.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> jc.testing.check_purity(jc.TerminateOnNaN(), max_examples=2)
    """
    subject = subject_of(callback, metrics)
    row = subject.row_list(Stream(dict.fromkeys(subject.names, (0.5,)), (True,), (1,)))[0]
    for hook in subject.hooks:
        _check_traces(subject, hook, row)

    def check(stream: Stream) -> None:
        _check_calls(subject, stream)

    for_all(check, streams(subject.names, max_size=3), max_examples)


def _check_traces(subject: Subject, hook: str, row: Any) -> None:
    """Checks that tracing a hook reads nothing of its environment, and keeps no traced value."""

    def run(state: Any, row: Any) -> Any:
        return transition(subject.callback, subject.name, hook, state, row.now)

    read: list[str] = []
    jax.make_jaxpr(run)(subject.init(), row)  # fills the caches of imports and of files that are read once
    # a new lambda each time, because JAX caches the trace of a function
    here = jax.make_jaxpr(lambda s, r: run(s, r))(subject.init(), row)
    with another_world(read):
        there = jax.make_jaxpr(lambda s, r: run(s, r))(subject.init(), row)
    if read:
        raise broken("purity", subject, f"{hook} reads the file {read[0]!r}")
    if not same_program(here, there):
        raise broken("purity", subject, f"{hook} gives another program when it is traced again, a year later")
    try:
        with jax.checking_leaks():
            jax.make_jaxpr(lambda s, r: run(s, r))(subject.init(), row)
    except Exception as error:
        if "leak" not in str(error).lower():
            raise
        raise broken("purity", subject, f"{hook} keeps a traced value: {error}") from error


def _check_calls(subject: Subject, stream: Stream) -> None:
    """Checks that hooks change no input, and that a second call gives the same output."""
    state = to_host(subject.init())
    for index, row in enumerate(subject.row_list(stream)):
        for hook in subject.hooks:
            given = row.before if hook in SEES_PREVIOUS else row.now
            before = to_host((state, given))
            once = transition(subject.callback, subject.name, hook, state, given)
            after = {hook: (state, given)}
            if said := difference({hook: before}, after, labels=("before", "after"), moments=False):
                raise broken("purity", subject, f"it changes its input at row {index}: {said}")
            twice = transition(subject.callback, subject.name, hook, state, given)
            if said := difference({hook: once}, {hook: twice}, labels=("once", "twice"), moments=False):
                raise broken("purity", subject, f"same input, other output at row {index}: {said}")
            state = to_host(once[0])
