"""Runs that differ in one thing each, for tests that no program serves a run of another kind."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcb as jc

ROWS, WIDTH = 24, 3
X = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(ROWS, 2)).astype(np.float32)


def loss_fn(params, batch):
    x, y = batch
    error = x @ params["w"] + params["b"][None] - y
    return jnp.mean(error**2), {"largest": jnp.abs(error).max()}


def loss_with_control(params, batch, controls):
    loss, values = loss_fn(params, batch)
    return loss * controls["scale"], values


def loss_with_key(params, batch, key):
    loss, values = loss_fn(params, batch)
    return loss + 0.01 * jax.random.normal(key), values


def make_loss(constant: Any, power: int = 2) -> Callable[..., Any]:
    """A loss function that captures a constant."""

    def loss(params, batch):
        x, y = batch
        return jnp.mean(jnp.abs(x @ params["w"] + params["b"][None] - y * jnp.broadcast_to(constant, y.shape)) ** power)

    return loss


class Weighted:
    """A loss function that is an object."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, params, batch):
        return self.weight * loss_fn(params, batch)[0]

    def method(self, params, batch):
        return self(params, batch)


class StopAbove(jc.Callback):
    """Scales the rate by a static field whose type matters."""

    by: Any = jc.static(default=1)
    bound: float = 0.0

    def on_epoch_end(self, state, metrics):
        factor = 0.5 if isinstance(self.by, bool) else (0.25 if isinstance(self.by, float) else 0.75)
        return state, jc.actions.ScaleLearningRate(factor, when=metrics["loss"] > self.bound)


class Chosen(jc.Callback):
    """Stops by a function of the metrics in a static field."""

    rule: Any = jc.static(default=None)

    def on_epoch_end(self, state, metrics):
        return state, jc.actions.Stop(self.rule(metrics))


def params(dtype: Any = jnp.float32, width: int = WIDTH) -> dict[str, Any]:
    return {"w": jnp.full((width, 2), 0.1, dtype), "b": jnp.zeros(2, dtype)}


def run(  # noqa: PLR0913
    *,
    model: Callable[[], Any] = params,
    loss: Any = loss_fn,
    data: Any = (X, Y),
    callbacks: Callable[[], list[Any]] = lambda: [jc.EarlyStopping("val_loss", patience=1, mode="min")],
    optimizer: Any = optax.adam,
    learning_rate: Any = 0.1,
    validation_data: Any = (X[:8], Y[:8]),
    epochs: int = 3,
    batch_size: int | None = 8,
    **more: Any,
) -> dict[str, Any]:
    """Trains, and returns everything that a run computes, as numpy arrays."""
    result = jc.fit(
        model(),
        loss,
        data,
        callbacks=callbacks(),
        optimizer=optimizer,
        learning_rate=learning_rate,
        validation_data=validation_data,
        epochs=epochs,
        batch_size=batch_size,
        verbose=0,
        **more,
    )
    found = {f"history/{name}": result.history[name] for name in result.history}
    leaves = jax.tree_util.tree_leaves_with_path((result.params, result.state.opt_state, result.callback_states))
    found |= {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return found | {"stopped": np.asarray(result.stopped_epoch or -1), "step": np.asarray(result.state.step)}


def _norm(look: Any) -> Any:
    return optax.tree.norm(look.grads)


def _sum(look: Any) -> Any:
    return jnp.sum(look.grads["w"])


VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "rate": {"learning_rate": 0.01},
    "seed": {"seed": 1},
    "epochs": {"epochs": 2},
    "steps": {"epochs": None, "steps": 5},
    "batch size": {"batch_size": 6},
    "remainder": {"batch_size": 7},
    "dropped remainder": {"batch_size": 7, "execution": jc.Execution(drop_remainder=True)},
    "order": {"shuffle": False},
    "rows": {"data": (X[:16], Y[:16])},
    "numpy batches": {"data": [(X[:8], Y[:8]), (X[8:16], Y[8:16])], "batch_size": None},
    "weights of half precision": {"model": lambda: params(jnp.bfloat16)},
    "data of half precision": {"data": (X.astype(np.float16), Y)},
    "validation rows": {"validation_data": (X[:5], Y[:5])},
    "validation frequency": {"validation_freq": 2},
    "validation epochs": {"validation_freq": [3]},
    "validation steps": {"execution": jc.Execution(eval_every=2)},
    "two validation sets": {"validation_data": {"a": (X[:8], Y[:8]), "b": (X[8:], Y[8:])}, "callbacks": list},
    "no validation": {"validation_data": None, "callbacks": list},
    "patience": {"callbacks": lambda: [jc.EarlyStopping("val_loss", patience=0, mode="min")]},
    "mode": {"callbacks": lambda: [jc.EarlyStopping("val_loss", patience=1, mode="max")]},
    "monitor": {"callbacks": lambda: [jc.EarlyStopping("loss", patience=1, mode="max")]},
    "best weights": {
        "callbacks": lambda: [jc.EarlyStopping("val_loss", patience=1, mode="max", restore_best_weights=True)]
    },
    "name": {"callbacks": lambda: [jc.EarlyStopping("val_loss", patience=1, mode="min", name="other")]},
    "order of callbacks": {
        "callbacks": lambda: [jc.ReduceLROnPlateau("loss", patience=1), jc.EarlyStopping("val_loss", mode="max")]
    },
    "other order of callbacks": {
        "callbacks": lambda: [jc.EarlyStopping("val_loss", mode="max"), jc.ReduceLROnPlateau("loss", patience=1)]
    },
    "static integer": {"callbacks": lambda: [StopAbove(by=1)]},
    "static float": {"callbacks": lambda: [StopAbove(by=1.0)]},
    "static boolean": {"callbacks": lambda: [StopAbove(by=True)]},
    "static function": {"callbacks": lambda: [Chosen(rule=lambda m: m["loss"] > 0)]},
    "other static function": {"callbacks": lambda: [Chosen(rule=lambda m: m["loss"] < 0)]},
    "accumulation": {"callbacks": lambda: [jc.callbacks.GradientAccumulation(3)]},
    "longer accumulation": {"callbacks": lambda: [jc.callbacks.GradientAccumulation(9)]},
    "scheduler": {"callbacks": lambda: [jc.LearningRateScheduler(lambda epoch: 0.1 / (1 + epoch))]},
    "other scheduler": {"callbacks": lambda: [jc.LearningRateScheduler(lambda epoch: 0.2 / (1 + epoch))]},
    "captured 1": {"loss": make_loss(1.0)},
    "captured 2": {"loss": make_loss(2.0)},
    "captured array": {"loss": make_loss(np.array([1.0, 2.0], np.float32))},
    "other captured array": {"loss": make_loss(np.array([1.0, 3.0], np.float32))},
    "captured power": {"loss": make_loss(1.0, 4)},
    "object": {"loss": Weighted(1.0)},
    "other object": {"loss": Weighted(2.0)},
    "method": {"loss": Weighted(3.0).method},
    "other method": {"loss": Weighted(4.0).method},
    "partial": {"loss": functools.partial(lambda scale, p, b: scale * loss_fn(p, b)[0], 1.0)},
    "other partial": {"loss": functools.partial(lambda scale, p, b: scale * loss_fn(p, b)[0], 2.0)},
    "key": {"loss": loss_with_key},
    "control": {"loss": loss_with_control, "controls": {"scale": 1.0}},
    "other control": {"loss": loss_with_control, "controls": {"scale": 2.0}},
    "factory": {"optimizer": optax.sgd},
    "factory of a partial": {"optimizer": functools.partial(optax.sgd, momentum=0.9)},
    "other factory of a partial": {"optimizer": functools.partial(optax.sgd, momentum=0.5)},
    "schedule": {"learning_rate": optax.linear_schedule(0.1, 0.0, 9)},
    "other schedule": {"learning_rate": optax.linear_schedule(0.2, 0.0, 9)},
    "ready-made": {"optimizer": optax.sgd(0.1), "learning_rate": None},
    "other ready-made": {"optimizer": optax.sgd(0.2), "learning_rate": None},
    "probe": {"metrics": {"norm": jc.probe(_norm)}},
    "rarer probe": {"metrics": {"norm": jc.probe(_norm, every=2)}},
    "other probe": {"metrics": {"norm": jc.probe(_sum)}},
    "other name of a probe": {"metrics": {"size": jc.probe(_norm)}},
    "host metric": {"metrics": {"outside": jc.probes.host_metric(lambda: 1.0)}},
    "evaluator": {"metrics": {"val_twice": jc.probes.evaluator(lambda model: 2.0)}},
    "stepped": {"execution": jc.Execution(executor="stepped")},
    "debug": {"execution": jc.Execution(debug=True)},
    "other structure": {"model": lambda: {"w": jnp.full((WIDTH, 2), 0.1), "b": jnp.zeros(2), "unused": jnp.ones(())}},
}
