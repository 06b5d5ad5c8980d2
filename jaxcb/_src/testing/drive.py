"""Runs a callback on a stream: one transition, eager, jitted, scanned and vmapped."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis.errors import Flaky

from jaxcb._src.core.callback import HOOKS, Callback
from jaxcb._src.core.chain import Chain, transition
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.testing.compare import rounded_outputs, stack
from jaxcb._src.testing.streams import Stream
from jaxcb._src.testing.tracing import STANDARD, AccessedNames, AnyNames
from jaxcb._src.utils.errors import CallbackError, check_int, shown
from jaxcb._src.utils.pytree import Struct, select, to_strong_types

CAPACITY = 8
SEES_PREVIOUS = ("on_train_begin", "on_epoch_begin", "on_batch_begin", "on_eval_begin")


LAWS = ("purity", "one meaning", "fixed form", "causality", "resume", "chain", "chunk invariance")


def broken(law: str, subject: object, detail: str) -> AssertionError:
    """Returns the error for a law that does not hold."""
    return AssertionError(f"Law {LAWS.index(law) + 1} ({law}) is broken by {subject}: {detail}")


class Row(Struct):
    """One point in time of a stream; with a leading axis, all of them."""

    before: Metrics  # the metrics that begin hooks see
    now: Metrics  # the metrics that other hooks see
    active: dict[str, Any]  # hook -> whether it is called here, bool ()


class Subject:
    """A callback with the metrics that it reads, and its compiled runs.

    A row is one validation of a run. Every hook is run in every row, and a select drops its result where the stream
    does not call it. So one compiled program serves every stream.
    """

    def __init__(self, callback: Callback, names: Iterable[str] | None = None) -> None:
        if not isinstance(callback, Callback):
            raise TypeError(f"expected a jaxcb callback, got {type(callback).__name__}.")
        self.callback = callback
        self.name = callback.name or type(callback).__name__
        self.hooks = tuple(h for h in HOOKS if h in callback.hooks())
        self.traces: Counter[str] = Counter()
        if names is not None and not isinstance(names, Iterable):
            raise TypeError(f"metrics must be names of metrics, got {shown(names)}.")
        self.names = tuple(sorted(names if names is not None else self._find_names()))

    def __str__(self) -> str:
        return "+".join(self.callback.names) if isinstance(self.callback, Chain) else self.name

    def init(self) -> Any:
        return to_strong_types(self.callback.init())

    def _find_names(self) -> set[str]:
        """Traces each hook with metrics that have every name, and returns the names that it reads."""
        found: set[str] = set()
        for hook in self.hooks:
            accessed = AccessedNames()

            def ask(state: Any, clock: Any, value: Any, accessed: AccessedNames = accessed, hook: str = hook) -> Any:
                metrics = Metrics._make(
                    values=AnyNames(accessed, value),
                    reported=AnyNames(accessed, clock),
                    step=clock,
                    epoch=clock,
                    total_steps=clock,
                    closes_epoch=clock > 0,
                    host={},
                )
                return transition(self.callback, self.name, hook, state, metrics)

            try:
                jax.eval_shape(ask, self.init(), jnp.int32(0), jnp.float32(0))
            except jax.errors.JAXTypeError as error:
                raise broken("one meaning", self, f"{hook} cannot be traced: {error}") from error
            except CallbackError as error:
                law = "one meaning" if isinstance(error.__cause__, jax.errors.JAXTypeError) else "fixed form"
                raise broken(law, self, str(error)) from error
            found |= accessed.names | (set(STANDARD) if accessed.all else set())
        return found

    # One transition

    def run_row(self, callback: Callback, state: Any, row: Row) -> tuple[Any, dict[str, Any]]:
        """Runs every hook of one row. Returns the state, and for each hook the state after it and its actions."""
        seen = {}
        for hook in self.hooks:
            self.traces[hook] += 1
            active = row.active[hook]
            metrics = row.before if hook in SEES_PREVIOUS else row.now
            new, actions = transition(callback, self.name, hook, state, metrics)
            state = select(active, new, state)
            seen[hook] = {"state": state, "actions": tuple(a.replace(when=a.when & active) for a in actions)}
        return state, seen

    # Whole runs

    def eager(self, rows: Sequence[Row], state: Any = None) -> Any:
        """Runs row by row without jit; returns states and actions, stacked."""
        return stack(list(self.eager_moments(rows, state)))

    def eager_moments(self, rows: Sequence[Row], state: Any = None) -> Iterator[Any]:
        state = self.init() if state is None else state
        for row in rows:
            state, seen = self.run_row(self.callback, state, row)
            yield seen

    def jitted(self, rows: Sequence[Row], state: Any = None) -> Any:
        """Runs row by row, with one compiled call per row."""
        state, out = self.init() if state is None else state, []
        for row in rows:
            state, seen = self._jit(state, row)
            out.append(seen)
        return stack(out)

    def scanned(self, rows: Row, state: Any = None, start: int = 0, stop: int = CAPACITY) -> tuple[Any, Any]:
        """Runs rows `start` to `stop` of stacked rows in one compiled `lax.scan` of fixed capacity."""
        return self._scan(to_strong_types(self.callback), self.init() if state is None else state, rows, start, stop)

    def vmapped(self, members: Row) -> Any:
        """Runs several streams at once, with a leading member axis."""
        return self._vmap(self.init(), members)

    @functools.cached_property
    def _jit(self) -> Any:
        return jax.jit(functools.partial(self.run_row, self.callback))

    def _run(self, callback: Callback, state: Any, rows: Row, start: Any, stop: Any) -> tuple[Any, Any]:
        def body(state: Any, at: Any) -> tuple[Any, Any]:
            index, row = at
            inside = (index >= start) & (index < stop)
            return self.run_row(callback, state, row.replace(active={h: a & inside for h, a in row.active.items()}))

        return jax.lax.scan(body, state, (jnp.arange(CAPACITY, dtype=jnp.int32), rows))

    @functools.cached_property
    def _scan(self) -> Any:
        return jax.jit(self._run)

    @functools.cached_property
    def _vmap(self) -> Any:
        def run(state: Any, rows: Row) -> Any:
            return self._run(self.callback, state, rows, 0, CAPACITY)[1]

        return jax.jit(jax.vmap(run, in_axes=(None, 0)))

    # Streams as rows

    def rows(self, stream: Stream) -> Row:
        """Returns a stream as stacked rows, padded to the capacity with rows in which no hook is called."""
        now = _pad(stream.stacked(), len(stream))
        never = Metrics._make(
            values=dict.fromkeys(now.values, np.float32("nan")),
            reported=dict.fromkeys(now.values, np.int32(-1)),
            step=np.int32(0),
            epoch=np.int32(0),
            total_steps=now.total_steps[0],
            closes_epoch=np.bool_(False),
            host={},
        )
        before = jax.tree.map(lambda first, rest: np.concatenate([[first], rest[:-1]]).astype(rest.dtype), never, now)
        before = before.replace(epoch=now.epoch, closes_epoch=np.zeros(CAPACITY, bool))
        here = np.arange(CAPACITY) < len(stream)
        closes = now.closes_epoch & here
        special = {
            "on_train_begin": np.arange(CAPACITY) == 0,
            "on_train_end": np.arange(CAPACITY) == len(stream) - 1,
            "on_epoch_begin": here & np.concatenate([[True], closes[:-1]]),
            "on_epoch_end": closes,
        }
        return Row(before, now, {h: special.get(h, here) for h in self.hooks})

    def row_list(self, stream: Stream) -> list[Row]:
        """Returns the rows of a stream as a list, with arrays on the device."""
        rows = self.rows(stream)
        return [jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), rows) for i in range(len(stream))]

    @functools.cached_property
    def rounded(self) -> Any:
        """For each leaf of a row's result, whether it is exact only up to rounding."""
        example = jax.tree.map(lambda x: x[0], self.rows(Stream(dict.fromkeys(self.names, (0.0,)), (True,), (1,))))

        def run(state: Any, row: Row) -> Any:
            return self.run_row(self.callback, state, row)[1]

        closed, shape = jax.make_jaxpr(run, return_shape=True)(self.init(), example)
        return jax.tree.unflatten(jax.tree.structure(shape), rounded_outputs(closed))


def _pad(metrics: Metrics, size: int) -> Metrics:
    return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], CAPACITY - size, axis=0)]), metrics)


def subject_of(callback: "Callback | Subject", names: Iterable[str] | None) -> Subject:
    """Returns the callback as a `Subject`, which keeps the programs that were compiled for it."""
    return callback if isinstance(callback, Subject) else Subject(callback, names)


def for_all(check: Callable[..., None], strategy: Any, max_examples: int | None, *, spread: bool = False) -> None:
    """Runs `check` on Hypothesis examples of `strategy`; with `spread` these are tuples of its arguments.

    There is no shrinking: streams are short already.
    """
    failures: list[AssertionError] = []
    options: dict[str, Any] = {}
    if max_examples is not None:
        options["max_examples"] = check_int("check", "max_examples", max_examples, least=1)

    @hypothesis.settings(
        deadline=None,
        database=None,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=tuple(hypothesis.HealthCheck),  # pyright: ignore[reportArgumentType]
        **options,
    )
    @hypothesis.given(strategy)
    def run(example: Any) -> None:
        try:
            if spread:
                check(*example)
            else:
                check(example)
        except AssertionError as error:
            failures.append(error)
            raise

    try:
        run()
    except Flaky:  # a callback with hidden state fails once and not again
        if failures:
            raise failures[0] from None
        raise
