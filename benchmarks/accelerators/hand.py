"""Loops written by hand: a compiled scan over the steps of an epoch, with its validation, for each kind of case."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from models import Model, adam
from targets import Target

from jaxcb._src.data.inputs import DataConfig
from jaxcb._src.data.pipeline import plan_data

EVERY, BINS, MEMBERS = 100, 30, 16


class Loop:
    """What the loops share.

    Args:
        model: the model.
        target: the devices.
    """

    def __init__(self, model: Model, target: Target) -> None:
        self.model, self.target = model, target
        config = DataConfig(batch_size=model.batch_size, resident=True)
        self.spec = plan_data(model.train, config).spec

    def order(self, epoch: Any) -> Any:
        """The rows of each step of an epoch, in the order in which jaxcb takes them."""
        return self.spec.layout.new_order(self.spec.key, epoch).reshape(-1, self.model.batch_size)

    def gathered(self, data: Any, rows: Any) -> Any:
        """A batch, split over the devices."""
        mesh = self.target.mesh
        if mesh is not None:
            rows = jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec("data")))
        batch = jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), data)
        return self.split(batch)

    def split(self, batch: Any) -> Any:
        mesh = self.target.mesh
        if mesh is None:
            return batch
        return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec("data")))

    def start(self, learning_rate: Any = 1e-3) -> Any:
        """Parameters, other state and optimizer state."""
        params, state = self.model.variables
        return params, state, adam(learning_rate).init(params)

    def update(self, carry: Any, batch: Any, learning_rate: Any = 1e-3) -> tuple[Any, Any, Any]:
        """A step: what is carried, loss and metrics, gradients."""
        params, state, opt_state = carry
        grads_of = jax.value_and_grad(lambda p: self.model.loss(p, state, batch, True), has_aux=True)
        (loss, (metrics, state)), grads = grads_of(params)
        updates, opt_state = adam(learning_rate).update(grads, opt_state, params)
        numbers = jnp.stack([loss, *metrics.values()])
        return self.constrained((optax.apply_updates(params, updates), state, opt_state)), numbers, grads

    def constrained(self, carry: Any) -> Any:
        """The carry with its shardings, which are then those of the next step."""
        return (
            carry if self.target.mesh is None else jax.lax.with_sharding_constraint(carry, self.target.shardings(carry))
        )

    def validate(self, carry: Any, validation: Any) -> Any:
        """Loss and metrics over the validation rows, batch by batch."""
        params, state, _ = carry
        batches = jax.tree.map(lambda x: x.reshape(-1, self.model.batch_size, *x.shape[1:]), validation)

        def one(total: Any, batch: Any) -> Any:
            loss, (metrics, _) = self.model.loss(params, state, self.split(batch), False)
            return total + jnp.stack([loss, *metrics.values()]), None

        zeros = jnp.zeros(2)
        return jax.lax.scan(one, zeros, batches)[0] / len(jax.tree.leaves(batches)[0])

    def trace(self, run: Callable[..., Any], carry: Any, *rest: Any, donate: Any = 0) -> Any:
        """Traces an epoch for the target; `carry` is donated."""
        how: dict[str, Any] = {}
        if self.target.mesh is not None:
            everywhere = NamedSharding(self.target.mesh, PartitionSpec())
            shardings = self.target.shardings(carry)
            how["out_shardings"] = (shardings, everywhere)
            carry = jax.tree.map(_with, carry, shardings)
            rest = jax.tree.map(lambda x: _with(x, everywhere), rest)
        return jax.jit(run, donate_argnums=donate, **how).trace(*self.target.place((carry, *rest)))


def _with(x: Any, sharding: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=sharding)


def plain(model: Model, target: Target) -> Any:
    """An epoch, its validation, and nothing else."""
    loop = Loop(model, target)

    def epoch(carry: Any, number: Any, train: Any, validation: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            carry, numbers, _ = loop.update(carry, loop.gathered(train, rows))
            return carry, numbers

        carry, numbers = jax.lax.scan(step, carry, loop.order(number))
        return carry, jnp.concatenate([numbers.mean(0), loop.validate(carry, validation)])

    return loop.trace(epoch, loop.start(), jnp.int32(0), model.train, model.validation)


def probed(model: Model, target: Target) -> Any:
    """The norm of the gradients at every 100th step, in a branch."""
    loop = Loop(model, target)

    def epoch(carry: Any, number: Any, train: Any, validation: Any) -> Any:
        def step(loop_carry: Any, rows: Any) -> Any:
            carry, count, norm = loop_carry
            carry, numbers, grads = loop.update(carry, loop.gathered(train, rows))
            norm = jax.lax.cond(count % EVERY == 0, lambda: optax.global_norm(grads), lambda: norm)
            return (carry, count + 1, norm), numbers

        start = carry, number * model.steps, jnp.float32(jnp.nan)
        (carry, _, norm), numbers = jax.lax.scan(step, start, loop.order(number))
        return carry, jnp.concatenate([numbers.mean(0), loop.validate(carry, validation), norm[None]])

    return loop.trace(epoch, loop.start(), jnp.int32(0), model.train, model.validation)


def best(model: Model, target: Target) -> Any:
    """The best weights are kept, in a branch at the end of the epoch."""
    loop = Loop(model, target)

    def epoch(whole: Any, number: Any, train: Any, validation: Any) -> Any:
        carry, kept = whole["carry"], whole["best"]

        def step(carry: Any, rows: Any) -> Any:
            carry, numbers, _ = loop.update(carry, loop.gathered(train, rows))
            return carry, numbers

        carry, numbers = jax.lax.scan(step, carry, loop.order(number))
        values = loop.validate(carry, validation)
        kept = jax.lax.cond(values[0] < kept[0], lambda: (values[0], carry[:2]), lambda: kept)
        return {"carry": carry, "best": kept}, jnp.concatenate([numbers.mean(0), values])

    carry = loop.start()
    whole = {"carry": carry, "best": (jnp.float32(jnp.inf), carry[:2])}
    return loop.trace(epoch, whole, jnp.int32(0), model.train, model.validation)


def histograms(model: Model, target: Target) -> Any:
    """Histograms of weights and gradients once an epoch: the gradients' in a branch of the step."""
    loop = Loop(model, target)

    def counts(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.histogram(x, BINS), tree)

    def epoch(carry: Any, number: Any, train: Any, validation: Any) -> Any:
        def step(loop_carry: Any, rows: Any) -> Any:
            carry, count, seen = loop_carry
            carry, numbers, grads = loop.update(carry, loop.gathered(train, rows))
            seen = jax.lax.cond(count == 0, lambda: counts(grads), lambda: seen)
            return (carry, count + 1, seen), numbers

        start = carry, jnp.int32(0), jax.tree.map(jnp.zeros_like, counts(carry[0]))
        (carry, _, seen), numbers = jax.lax.scan(step, start, loop.order(number))
        values = jnp.concatenate([numbers.mean(0), loop.validate(carry, validation)])
        return carry, (values, seen, counts(carry[0]))

    return loop.trace(epoch, loop.start(), jnp.int32(0), model.train, model.validation)


def sweep(model: Model, target: Target) -> Any:
    """Sixteen learning rates as a batched step, over the same batches."""
    loop = Loop(model, target)

    def epoch(carry: Any, number: Any, rates: Any, train: Any, validation: Any) -> Any:
        def step(carry: Any, rows: Any) -> Any:
            batch = loop.gathered(train, rows)
            carry, numbers, _ = jax.vmap(loop.update, in_axes=(0, None, 0))(carry, batch, rates)
            return carry, numbers

        carry, numbers = jax.lax.scan(step, carry, loop.order(number))
        values = jax.vmap(loop.validate, in_axes=(0, None))(carry, validation)
        return carry, jnp.concatenate([numbers.mean(0), values], axis=-1)

    carry = jax.tree.map(lambda x: jax.ShapeDtypeStruct((MEMBERS, *jnp.shape(x)), jnp.result_type(x)), loop.start())
    return loop.trace(epoch, carry, jnp.int32(0), jnp.zeros(MEMBERS), model.train, model.validation)


def stream(model: Model, target: Target) -> Any:
    """A stack of batches from the host."""
    loop = Loop(model, target)

    def chunk(carry: Any, stack: Any, validation: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            carry, numbers, _ = loop.update(carry, loop.split(batch))
            return carry, numbers

        carry, numbers = jax.lax.scan(step, carry, stack)
        return carry, jnp.concatenate([numbers.mean(0), loop.validate(carry, validation)])

    size = model.batch_size
    stack = jax.tree.map(lambda x: jax.ShapeDtypeStruct((EVERY, size, *x.shape[1:]), x.dtype), model.train)
    return loop.trace(chunk, loop.start(), stack, model.validation)
