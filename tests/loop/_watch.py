"""Which batch is trained on when: runs over batches that carry their number."""

import threading
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from _arguments import grouped

import jaxcb as jc


def threads():
    return [t for t in threading.enumerate() if t.name == "jaxcb-data"]


class Seen(jc.actions.LogAction):
    number: Any


SEEN = []


@jc.writers.writer(Seen)
class SeenWriter(jc.writers.Writer):
    def write(self, record):
        SEEN.append((record.epoch, int(record.action.number)))


class Watch(jc.Callback):
    """Records each step's batch."""

    def on_batch_end(self, state, metrics):
        return state, Seen(metrics["number"])


class CallAt(jc.Callback):
    """Calls a function after steps that `every` divides."""

    every: int
    fn: Any = jc.static()

    def on_batch_end(self, state, metrics):
        return state, jc.actions.Call(self.fn, when=metrics.step % self.every == 0)


def numbered(count, start=0):
    return [np.full((2, 1), float(i), np.float32) for i in range(start, start + count)]


def number_loss(params, batch):
    return jnp.mean((params["w"] * 0.01 * batch) ** 2), {"number": batch[0, 0]}


def watch(executor, data, callbacks=(), **changes):
    """Runs over numbered batches; returns the (epoch, number) of each step."""
    SEEN.clear()
    changes = {"steps_per_execution": 3, "verbose": 0, "optimizer": optax.sgd, "learning_rate": 0.1} | changes
    jc.fit(
        {"w": jnp.ones(())}, number_loss, data, **grouped(executor=executor, callbacks=[Watch(), *callbacks], **changes)
    )
    assert not threads()
    return list(SEEN)


def in_epochs(numbers, length):
    return [(i // length, n) for i, n in enumerate(numbers)]
