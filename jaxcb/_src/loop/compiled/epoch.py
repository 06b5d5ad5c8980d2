"""Work between two chunks of steps: begin and end of the run, of its epochs and of validations.

All functions are traced. Each one takes and returns the loop state (`carry`) and the record buffers (`rings`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._src.loop.compiled.metric_accumulator import MetricAccumulator, computed
from jaxcb._src.loop.compiled.program import Program
from jaxcb._src.loop.compiled.state import Inputs, LastReported, LoopState
from jaxcb._src.utils.pytree import select

Cond = Callable[..., tuple[LoopState, Any]]  # (predicate, fn, carry, rings) -> fn(carry, rings), or the given ones


def begin(program: Program, inputs: Inputs, carry: LoopState, rings: Any) -> tuple[LoopState, Any]:
    """Runs `on_train_begin`."""
    metrics = program.metrics(inputs, carry, {}, last=False)
    carry, rings, _ = program.run_hook("on_train_begin", inputs, carry, rings, metrics)
    return carry, rings


def open_epoch(program: Program, inputs: Inputs, carry: LoopState, rings: Any) -> tuple[LoopState, Any]:
    """Begins an epoch: runs `on_epoch_begin` and draws the order of resident rows."""
    # freeze members that stopped during the previous epoch
    carry, rings = _end_stopped_members(program, inputs, carry, rings)
    metrics = program.metrics(inputs, carry, {}, last=False)
    alive = _alive(program, carry)
    carry, rings, _ = program.run_hook("on_epoch_begin", inputs, carry, rings, metrics, alive=alive)
    carry, rings = _end_stopped_members(program, inputs, carry, rings)
    order = program.layout.new_order(inputs.key, carry.epoch) if carry.order is not None else None
    return carry.replace(order=order, opened=jnp.ones((), bool)), rings


def begin_eval(program: Program, inputs: Inputs, carry: LoopState, rings: Any) -> tuple[LoopState, Any]:
    """Runs `on_eval_begin`."""
    alive = _alive(program, carry)
    metrics = program.metrics(
        inputs,
        carry,
        carry.latest.values,
        last=True,
        reported=carry.latest.reported,
        closes=_closes(program, inputs, carry),
    )
    carry, rings, _ = program.run_hook("on_eval_begin", inputs, carry, rings, metrics, alive=alive)
    return carry, rings


def evaluate(program: Program, inputs: Inputs, carry: LoopState) -> dict[str, Array]:
    """Computes the metrics of the resident validation sets.

    A `fori_loop` goes over the full batches. The smaller last batch has another shape and runs after the loop. A set of
    one batch has nothing to accumulate: its means are the values of the batch.

    Returns:
        name -> float32 (), or (members,) for a population.
    """
    out = {}
    for eval_set in program.validation.resident:
        data = inputs.val[eval_set.prefix]
        full, rest = divmod(eval_set.rows, eval_set.batch_size)

        def rows(start: Any, size: int, data: Any = data) -> Any:
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), data)

        if full + bool(rest) == 1:
            values = program.eval_metrics(carry.train, rows(0, eval_set.rows), 0)
            means = computed(values, program.members is not None)
            out |= {eval_set.prefix + name: value.astype(jnp.float32) for name, value in means.items()}
            continue

        def body(
            i: Array, window: MetricAccumulator, rows: Any = rows, size: int = eval_set.batch_size
        ) -> MetricAccumulator:
            return program.eval_batch(window, carry.train, rows(i * size, size), i)

        first = jax.eval_shape(lambda rows=rows, size=eval_set.batch_size if full else rest: rows(0, size))
        window = jax.lax.fori_loop(0, full, body, program.empty_eval(carry.train, first))
        if rest:
            window = program.eval_batch(window, carry.train, rows(full * eval_set.batch_size, rest), full)
        out |= {eval_set.prefix + name: value for name, value in window.means().items()}
    return out


def end_eval(
    program: Program, inputs: Inputs, carry: LoopState, rings: Any, values: Mapping[str, Any]
) -> tuple[LoopState, Any]:
    """Stores the metrics of a validation and runs `on_eval_end`."""
    alive = _alive(program, carry)
    latest = _report(carry, values, alive)
    closes = _closes(program, inputs, carry)
    carry = carry.replace(latest=latest, evaluated=carry.step)
    metrics = program.metrics(inputs, carry, latest.values, last=True, reported=latest.reported, closes=closes)
    carry, rings, _ = program.run_hook("on_eval_end", inputs, carry, rings, metrics, alive=alive)
    return carry, rings


def close_epoch(program: Program, inputs: Inputs, carry: LoopState, rings: Any) -> tuple[LoopState, Any]:
    """Ends an epoch: reports its means, runs `on_epoch_end`, and moves the position to the next epoch."""
    alive = _alive(program, carry)
    latest = _report_windows(carry, alive)
    carry = carry.replace(latest=latest)
    metrics = program.metrics(inputs, carry, latest.values, last=True, reported=latest.reported, closes=True)
    carry, rings, _ = program.run_hook("on_epoch_end", inputs, carry, rings, metrics, alive=alive)
    carry = carry.replace(
        windows={name: window.cleared() for name, window in carry.windows.items()},
        epoch=carry.epoch + 1,
        began=carry.step,
        opened=jnp.zeros((), bool),
    )
    if program.members is None:
        return carry.replace(ended=carry.ended | carry.train.stop), rings
    return _end_stopped_members(program, inputs, carry, rings)


def validate_and_close_if_due(
    program: Program, inputs: Inputs, carry: LoopState, rings: Any, cond: Cond
) -> tuple[LoopState, Any]:
    """Runs a validation on resident sets if one is due, and closes the epoch if it is complete. One of them must be."""

    def validate(carry: LoopState, rings: Any) -> tuple[LoopState, Any]:
        carry, rings = begin_eval(program, inputs, carry, rings)
        return end_eval(program, inputs, carry, rings, evaluate(program, inputs, carry))

    if program.validation.resident and not program.validation.needs_host:
        due = program.predicates.eval_due(inputs, carry, closing=_closes(program, inputs, carry))
        carry, rings = cond(due, validate, carry, rings)
    return close_epoch_if_due(program, inputs, carry, rings, cond)


def close_epoch_if_due(
    program: Program, inputs: Inputs, carry: LoopState, rings: Any, cond: Cond
) -> tuple[LoopState, Any]:
    """Closes the epoch if it is complete, after a validation or where none is due."""
    closing = _closes(program, inputs, carry)
    if closing is True:
        return close_epoch(program, inputs, carry, rings)
    return cond(closing, lambda c, r: close_epoch(program, inputs, c, r), carry, rings)


def _closes(program: Program, inputs: Inputs, carry: LoopState) -> Any:
    """Returns whether the epoch closes at this boundary: True where every boundary closes one, otherwise bool ()."""
    return True if program.validation.schedule.closes_epochs else program.predicates.closing(inputs, carry)


def end(program: Program, inputs: Inputs, carry: LoopState, rings: Any) -> tuple[LoopState, Any]:
    """Runs `on_train_end` for members that have not run it yet."""
    return _end(program, inputs, carry, rings, _alive(program, carry))


def _end_stopped_members(program: Program, inputs: Inputs, carry: LoopState, rings: Any) -> tuple[LoopState, Any]:
    """Ends the run of members that have stopped, at the point where the run of each alone would have ended."""
    if program.members is None:
        return carry, rings
    stopping = carry.train.stop & ~carry.ended
    if "on_train_end" in program.spec.hooks:
        carry, rings = jax.lax.cond(
            jnp.any(stopping), lambda c, r: _end(program, inputs, c, r, stopping), _unchanged, carry, rings
        )
    return carry.replace(ended=carry.ended | stopping), rings


def _end(program: Program, inputs: Inputs, carry: LoopState, rings: Any, mask: Any) -> tuple[LoopState, Any]:
    """Runs `on_train_end` for a run, or for some members of a population."""
    closed = carry.epoch
    carry = carry.replace(epoch=jnp.maximum(closed - 1, 0))  # the hook reports the last epoch, not the one after it
    metrics = program.metrics(
        inputs, carry, carry.latest.values, last=True, reported=carry.latest.reported, closes=True
    )
    carry, rings, _ = program.run_hook("on_train_end", inputs, carry, rings, metrics, alive=mask)
    return carry.replace(epoch=closed), rings


def _report(carry: LoopState, values: Mapping[str, Any], alive: Any) -> LastReported:
    new = {name: jnp.asarray(v, jnp.float32) for name, v in values.items()}
    if alive is not None:
        new = select(alive, new, {name: carry.latest.values[name] for name in new})
    return LastReported(
        {**carry.latest.values, **new},
        {**carry.latest.reported, **dict.fromkeys(new, carry.step)},
    )


def _report_windows(carry: LoopState, alive: Any) -> LastReported:
    """Reports the means of the epoch. A probe that was not due in the epoch reports nothing."""
    latest = _report(carry, carry.windows[""].means(), alive)
    for name, window in carry.windows.items():
        if name:
            new, was_due = _report(carry.replace(latest=latest), window.means(), alive), jnp.any(window.any())
            latest = select(was_due, new, latest)
    return latest


def _alive(program: Program, carry: LoopState) -> Any:
    """Returns the mask of members whose last epoch is still open; None for a single run."""
    return None if program.members is None else ~carry.ended


def _unchanged(*values: Any) -> tuple[Any, ...]:
    return values
