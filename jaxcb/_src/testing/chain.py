"""Law 6, chain: callbacks compose, and none sees the effect of another."""

from collections.abc import Iterable
from typing import Any

import jax

from jaxcb._src.core.actions.logging import LogHistory
from jaxcb._src.core.callback import Callback, make_callback
from jaxcb._src.core.chain import chain
from jaxcb._src.testing.compare import difference
from jaxcb._src.testing.drive import Subject, broken, for_all, subject_of
from jaxcb._src.testing.streams import Stream, streams


def check_chain(
    callback: Callback | Subject, *, metrics: Iterable[str] | None = None, max_examples: int | None = None
) -> None:
    """Law 6: grouping changes nothing, `chain()` does nothing, and no callback sees another's effect.

    Args:
        callback: any callback.
        metrics: names of the metrics that it reads; found by tracing if None.
        max_examples: number of Hypothesis examples.

    Raises:
        AssertionError: if the law is broken; names the callback, hook, leaf and row.

    Example:
        >>> import jaxcb as jc, jaxcb.testing
        >>> jc.testing.check_chain(jc.TerminateOnNaN(), max_examples=2)
    """
    subject = subject_of(callback, metrics)
    callback = subject.callback
    first, last = (_witness(subject.hooks, name) for name in ("witness", "witness_2"))
    company = chain(first, chain(callback, last))
    for other in (chain(chain(first, callback), last), chain(chain(), company), chain(company, chain())):
        if company.names != other.names or jax.tree.structure(company) != jax.tree.structure(other):
            raise broken("chain", subject, f"grouping matters: {company.names} became {other.names}")
    names = chain(callback).names
    together, alone = Subject(company, subject.names), Subject(chain(callback), subject.names)

    def check(stream: Stream) -> None:
        rows = together.row_list(stream)
        all_seen = together.eager(rows)
        own_seen = alone.eager(alone.row_list(stream))
        for hook in subject.hooks:
            seen, actions = all_seen[hook]["state"], all_seen[hook]["actions"]
            before, after = (next(a for a in actions if a.owner == n) for n in ("witness", "witness_2"))
            if said := difference({hook: before.values}, {hook: after.values}, labels=("before it", "after it")):
                raise broken("chain", subject, f"it changes the metrics that other callbacks see: {said}")
            mine = {"state": {n: seen[n] for n in names}, "actions": tuple(a for a in actions if a.owner in names)}
            if said := difference({hook: own_seen[hook]}, {hook: mine}, labels=("alone", "in a chain")):
                raise broken("chain", subject, said)

    for_all(check, streams(subject.names, max_size=3), max_examples)


def _witness(hooks: Iterable[str], name: str) -> Callback:
    """Returns a callback that records the metrics it sees."""

    def show(state: Any, metrics: Any) -> Any:
        return state, LogHistory(dict(metrics.values), {})

    shows: dict[str, Any] = dict.fromkeys(hooks, show)
    return make_callback(name=name, **shows)
