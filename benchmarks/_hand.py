"""Loops written by hand, as one who knows JAX writes them: compiled, donated, data on the device.

They train on the batches that jaxcb trains on, validate as it does, and read an epoch's four numbers once an epoch.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _networks import Network, loss_fn
from _race import Baton
from orbax.checkpoint import v1 as ocp

from jaxcb._src.data.inputs import DataConfig
from jaxcb._src.data.pipeline import plan_data


def order_of(network: Network) -> Callable[[Any], Any]:
    """The order of an epoch's rows, with which jaxcb trains at seed 0."""
    spec = plan_data(np.zeros(network.rows), DataConfig(batch_size=network.batch_size)).spec
    assert spec.layout.kind == "resident"
    return lambda epoch: spec.layout.new_order(spec.key, epoch)


class Peer:
    """What the loops share: the update, the validation, and what is said in the end."""

    def __init__(self, network: Network, *, saves: bool = False) -> None:
        self.network, self.tx = network, optax.adam(network.learning_rate)
        training, validation = network.data()
        self.training, self.validation = jax.device_put(training), jax.device_put(validation)
        self.params = jax.device_put(network.params())
        self.opt_state = self.tx.init(self.params)
        self.losses: list[float] = []
        self.accuracy, self.best, self.saved = 0.0, -1.0, 0
        self._directory = tempfile.TemporaryDirectory() if saves else None
        self._saving: Any = None

    def update(self, params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, Any]:
        """A step: new weights, new optimizer state, loss and accuracy."""
        (loss, more), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = self.tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, jnp.stack([loss, more["accuracy"]])

    def validate(self, params: Any, validation: Any) -> Any:
        """The validation's loss and accuracy."""
        loss, more = loss_fn(params, validation)
        return jnp.stack([loss, more["accuracy"]])

    def read(self, epoch: int, numbers: Any, baton: Baton) -> None:
        """Reads an epoch's numbers, saves what is best, and ends the turn where it is over."""
        loss, _, _, self.accuracy = np.asarray(numbers).tolist()
        self.losses.append(loss)
        if self._directory is not None:
            if self.accuracy > self.best:
                self.best, self.saved = self.accuracy, self.saved + 1
                self.landed()
                path = Path(self._directory.name) / f"{epoch:05d}"
                self._saving = ocp.save_async(path, {"params": self.params})
            if (epoch + 1) % baton.epochs == 0:
                self.landed()  # a save that is under way belongs to this turn
        baton.epoch_done(epoch)

    def landed(self) -> None:
        """Waits for the save that is under way."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def did(self, epochs: int) -> dict[str, Any]:
        """What was done."""
        saves = {}
        if self._directory is not None:
            self.landed()
            self._directory.cleanup()
            saves = {"saves": self.saved}
        return {
            "steps": epochs * self.network.steps,
            "losses": self.losses[:8],
            "loss": self.losses[-1],
            "accuracy": self.accuracy,
        } | saves


def scan(network: Network, *, saves: bool = False) -> Callable[[Baton], dict[str, Any]]:
    """An epoch is one compiled `lax.scan` over data on the device, shuffled there."""

    def train(baton: Baton) -> dict[str, Any]:
        peer = Peer(network, saves=saves)
        order = order_of(network)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def run_epoch(params: Any, opt_state: Any, epoch: Any, training: Any, validation: Any) -> Any:
            def step(carry: Any, rows: Any) -> Any:
                batch = jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), training)
                params, opt_state, numbers = peer.update(*carry, batch)
                return (params, opt_state), numbers

            index = order(epoch).reshape(-1, network.batch_size)
            (params, opt_state), numbers = jax.lax.scan(step, (params, opt_state), index)
            return params, opt_state, jnp.concatenate([numbers.mean(0), peer.validate(params, validation)])

        for epoch in range(baton.total):
            peer.params, peer.opt_state, numbers = run_epoch(
                peer.params, peer.opt_state, np.int32(epoch), peer.training, peer.validation
            )
            peer.read(epoch, numbers, baton)
        return peer.did(baton.total)

    return train


def stretches(network: Network) -> Callable[[Baton], dict[str, Any]]:
    """As many epochs as one wants are one compiled loop, which keeps the best weights and each epoch's numbers."""
    room = 64  # epochs

    def train(baton: Baton) -> dict[str, Any]:
        peer, order = Peer(network), order_of(network)
        best = jax.tree.map(jnp.copy, peer.params), jnp.float32(jnp.inf)

        @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
        def run(params: Any, opt_state: Any, best: Any, epoch: Any, end: Any, training: Any, validation: Any) -> Any:
            def step(carry: Any, rows: Any) -> Any:
                batch = jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), training)
                params, opt_state, numbers = peer.update(*carry, batch)
                return (params, opt_state), numbers

            def one_epoch(carry: Any) -> Any:
                at, params, opt_state, best, seen = carry
                index = order(epoch + at).reshape(-1, network.batch_size)
                (params, opt_state), numbers = jax.lax.scan(step, (params, opt_state), index)
                row = jnp.concatenate([numbers.mean(0), peer.validate(params, validation)])
                best = jax.lax.cond(row[2] < best[1], lambda: (params, row[2]), lambda: best)
                return at + 1, params, opt_state, best, seen.at[at].set(row)

            carry = jnp.int32(0), params, opt_state, best, jnp.zeros((room, 4))
            return jax.lax.while_loop(lambda carry: carry[0] < end, one_epoch, carry)[1:]

        for epoch in range(baton.total):
            peer.params, peer.opt_state, best, seen = run(
                peer.params, peer.opt_state, best, np.int32(epoch), np.int32(1), peer.training, peer.validation
            )
            peer.read(epoch, seen[0], baton)
        return peer.did(baton.total)

    return train


def steps(network: Network, *, streamed: bool = False, saves: bool = False) -> Callable[[Baton], dict[str, Any]]:
    """A compiled call a step, nothing awaited until the epoch's end; batches from the device or from the host."""

    def train(baton: Baton) -> dict[str, Any]:
        peer = Peer(network, saves=saves)
        order, batches = order_of(network), network.batches()

        @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
        def step(params: Any, opt_state: Any, total: Any, batch: Any) -> Any:
            params, opt_state, numbers = peer.update(params, opt_state, batch)
            return params, opt_state, total + numbers

        @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
        def step_at(params: Any, opt_state: Any, total: Any, training: Any, index: Any, i: Any) -> Any:
            rows = jax.lax.dynamic_slice_in_dim(index, i * network.batch_size, network.batch_size)
            batch = jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), training)
            params, opt_state, numbers = peer.update(params, opt_state, batch)
            return params, opt_state, total + numbers

        draw, zeros = jax.jit(order), jax.jit(lambda: jnp.zeros(2))
        finish = jax.jit(
            lambda params, total, data: jnp.concatenate([total / network.steps, peer.validate(params, data)])
        )
        for epoch in range(baton.total):
            total = zeros()
            index = None if streamed else draw(np.int32(epoch))
            for i in range(network.steps):
                if streamed:
                    peer.params, peer.opt_state, total = step(peer.params, peer.opt_state, total, batches[i])
                else:
                    peer.params, peer.opt_state, total = step_at(
                        peer.params, peer.opt_state, total, peer.training, index, np.int32(i)
                    )
            peer.read(epoch, finish(peer.params, total, peer.validation), baton)
        return peer.did(baton.total)

    return train


class Alone(NamedTuple):
    """What stands for a baton where a run is one turn."""

    total: int  # epochs

    def epoch_done(self, epoch: int) -> None:
        """Hands nothing on."""


def whole_runs(network: Network, *, epochs: int) -> Callable[[Baton], dict[str, Any]]:
    """A turn is a whole run, a compiled call a step, with all that it compiles."""

    def train(baton: Baton) -> dict[str, Any]:
        did = {}
        for _ in baton.each():
            did = steps(network)(cast(Baton, Alone(epochs)))
        return did

    return train


def chunks(network: Network, size: int) -> Callable[[Baton], dict[str, Any]]:
    """Batches from the host, stacked by so many, a compiled scan a stack; the next one is stacked meanwhile."""

    def train(baton: Baton) -> dict[str, Any]:
        peer, batches = Peer(network), network.batches()

        @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
        def run(params: Any, opt_state: Any, total: Any, stack: Any) -> Any:
            def step(carry: Any, batch: Any) -> Any:
                params, opt_state, total = carry
                params, opt_state, numbers = peer.update(params, opt_state, batch)
                return (params, opt_state, total + numbers), None

            return jax.lax.scan(step, (params, opt_state, total), stack)[0]

        zeros = jax.jit(lambda: jnp.zeros(2))
        finish = jax.jit(
            lambda params, total, data: jnp.concatenate([total / network.steps, peer.validate(params, data)])
        )
        for epoch in range(baton.total):
            total = zeros()
            for i in range(0, network.steps, size):
                stack = jax.device_put(jax.tree.map(lambda *parts: np.stack(parts), *batches[i : i + size]))
                peer.params, peer.opt_state, total = run(peer.params, peer.opt_state, total, stack)
            peer.read(epoch, finish(peer.params, total, peer.validation), baton)
        return peer.did(baton.total)

    return train
