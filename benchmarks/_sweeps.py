"""Sixty-four networks on digits, each with its own early stopping: as a sweep, and as loops one after another.

All train from the same weights on the same batches, so that a member should stop where its loop does. Each turn is a
whole sweep; programs come from JAX's compilation cache for every contestant, whose first turns fill it.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _ours import compilation_cache
from _race import Baton

import jaxcb as jc
from jaxcb._src.data.inputs import DataConfig
from jaxcb._src.data.pipeline import plan_data

ROWS, VALIDATION_ROWS, BATCH_SIZE = 1472, 256, 8
STEPS = ROWS // BATCH_SIZE
EPOCHS, PATIENCE = 50, 5
RATES = (3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 8e-3, 1.2e-2, 2e-2)
SEEDS = 8
SIZES = (64, 16, 10)


def members() -> list[dict[str, Any]]:
    """The points: each seed with each rate."""
    return jc.search.grid({"seed": range(SEEDS), "optimizer.learning_rate": RATES})


def model_fn(seed: int) -> list[dict[str, np.ndarray]]:
    """A perceptron's weights."""
    rng = np.random.default_rng(seed)
    return [
        {"w": (rng.normal(size=(m, n)) * np.sqrt(2 / m)).astype(np.float32), "b": np.zeros((1, n), np.float32)}
        for m, n in itertools.pairwise(SIZES)
    ]


def loss_fn(params: Any, batch: Any) -> Any:
    """The loss alone."""
    x, labels = batch
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def data() -> tuple[Any, Any]:
    """Rows to train and to validate on, on the device."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1).permutation(len(images))[: ROWS + VALIDATION_ROWS]
    x, y = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    return jax.device_put((x[:ROWS], y[:ROWS])), jax.device_put((x[ROWS:], y[ROWS:]))


class StopAt(jc.Callback):
    """Ends a run after so many epochs."""

    epochs: int = 1

    def on_epoch_end(self, state: Any, metrics: jc.Metrics) -> Any:
        return state, jc.actions.Stop(metrics.epoch + 1 >= self.epochs, "far enough")


def swept(*, cores: int = 1, **arguments: Any) -> Callable[[Baton], dict[str, Any]]:
    """The sweep: early stopping with the best weights of each member. On a CPU, so many cores are devices."""
    callbacks = lambda: [jc.EarlyStopping(patience=PATIENCE, restore_best_weights=True)]  # noqa: E731

    def train(baton: Baton) -> dict[str, Any]:
        jax.config.update("jax_num_cpu_devices", cores)
        return _sweep(members, callbacks, EPOCHS, **arguments)(baton)

    return train


def staggered(**arguments: Any) -> Callable[[Baton], dict[str, Any]]:
    """Members that end at widely different epochs: half of those that are left at each doubling."""

    def points() -> list[dict[str, Any]]:
        ends = [3 * 2 ** min(int(np.log2(64 / (i + 1))), 5) for i in range(64)]
        return [{"seed": i, "callbacks.StopAt.epochs": end} for i, end in enumerate(ends)]

    return _sweep(points, lambda: [StopAt()], 96, learning_rate=1e-3, **arguments)


def _sweep(points: Any, callbacks: Any, epochs: int, **arguments: Any) -> Callable[[Baton], dict[str, Any]]:
    def train(baton: Baton) -> dict[str, Any]:
        found = None
        with compilation_cache():
            training, validation = data()
            for _ in baton.each():
                found = jc.sweep(
                    model_fn, loss_fn, training, over=points(), optimizer=optax.adam, callbacks=callbacks(),
                    epochs=epochs, batch_size=BATCH_SIZE, validation_data=validation,
                    validation_batch_size=VALIDATION_ROWS, verbose=0, **arguments,
                )  # fmt: skip
        assert found is not None
        table = found.table()
        return _did(table["steps"], table["best_val_loss"])

    return train


def _by_step(baton: Baton) -> dict[str, Any]:
    """A jitted step in a Python loop, and early stopping in Python, member after member."""
    with compilation_cache():
        training, validation = data()

        @jax.jit
        def order(seed_key: Any, epoch: Any) -> Any:
            return _order(seed_key, epoch)

        def step(params: Any, opt_state: Any, index: Any, i: Any, rate: Any, training: Any) -> Any:
            return _update(params, opt_state, index, i, rate, training)

        step, validate = jax.jit(step, donate_argnums=(0, 1)), jax.jit(loss_fn)
        copied = jax.jit(lambda params: jax.tree.map(jnp.copy, params))
        steps: list[int] = []
        bests: list[float] = []
        for _ in baton.each():
            steps, bests = [], []
            for point in members():
                params = jax.device_put(model_fn(point["seed"]))
                opt_state, key = _ADAM.init(params), _key(point["seed"])
                rate = jnp.float32(point["optimizer.learning_rate"])
                best, kept, wait, epoch = np.inf, params, 0, 0
                for epoch in range(EPOCHS):
                    index = order(key, np.int32(epoch))
                    for i in range(STEPS):
                        params, opt_state = step(params, opt_state, index, np.int32(i), rate, training)
                    value = float(validate(params, validation))
                    if value < best:
                        best, kept, wait = value, copied(params), 0
                    else:
                        wait += 1
                        if wait >= PATIENCE:
                            break
                jax.block_until_ready(kept)
                steps.append((epoch + 1) * STEPS)
                bests.append(best)
        return _did(steps, bests)


def _compiled(baton: Baton) -> dict[str, Any]:
    """A whole run as one compiled loop with early stopping in it, member after member."""
    with compilation_cache():
        training, validation = data()

        @jax.jit
        def run(params: Any, key: Any, rate: Any, training: Any, validation: Any) -> Any:
            def more(carry: Any) -> Any:
                return (carry["epoch"] < EPOCHS) & (carry["wait"] < PATIENCE)

            def one_epoch(carry: Any) -> Any:
                index = _order(key, carry["epoch"])

                def step(i: Any, state: Any) -> Any:
                    return _update(*state, index, i, rate, training)

                params, opt_state = jax.lax.fori_loop(0, STEPS, step, (carry["params"], carry["opt_state"]))
                value = loss_fn(params, validation)
                better = value < carry["best"]
                kept = jax.lax.cond(better, lambda a, _: a, lambda _, b: b, params, carry["kept"])
                return {
                    "params": params,
                    "opt_state": opt_state,
                    "kept": kept,
                    "best": jnp.where(better, value, carry["best"]),
                    "wait": jnp.where(better, 0, carry["wait"] + 1),
                    "epoch": carry["epoch"] + 1,
                }

            zero = jnp.zeros((), jnp.int32)
            start = {
                "params": params,
                "opt_state": _ADAM.init(params),
                "kept": params,
                "best": jnp.float32(jnp.inf),
                "wait": zero,
                "epoch": zero,
            }
            out = jax.lax.while_loop(more, one_epoch, start)
            return out["kept"], out["best"], out["epoch"]

        steps: list[int] = []
        bests: list[float] = []
        for _ in baton.each():
            steps, bests = [], []
            for point in members():
                params = jax.device_put(model_fn(point["seed"]))
                rate = jnp.float32(point["optimizer.learning_rate"])
                _, best, epochs = run(params, _key(point["seed"]), rate, training, validation)
                steps.append(int(epochs) * STEPS)
                bests.append(float(best))
        return _did(steps, bests)


def by_hand(*, compiled: bool) -> Callable[[Baton], dict[str, Any]]:
    """Loops one after another: a jitted step in a Python loop, or a whole run compiled as one."""
    return _compiled if compiled else _by_step


_ADAM = optax.scale_by_adam()


def _update(params: Any, opt_state: Any, index: Any, i: Any, rate: Any, training: Any) -> Any:
    rows = jax.lax.dynamic_slice_in_dim(index, i * BATCH_SIZE, BATCH_SIZE)
    batch = jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), training)
    updates, opt_state = _ADAM.update(jax.grad(loss_fn)(params, batch), opt_state)
    return optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, updates)), opt_state


def _key(seed: int) -> Any:
    """The key of the order in which jaxcb trains at that seed."""
    return _data(seed).key


def _order(key: Any, epoch: Any) -> Any:
    return _data(0).layout.new_order(key, epoch)


def _data(seed: int) -> Any:
    return plan_data(np.zeros(ROWS), DataConfig(batch_size=BATCH_SIZE, seed=seed)).spec


def _did(steps: list[int], bests: list[float]) -> dict[str, Any]:
    return {"steps": sum(steps), "each": [int(s) for s in steps], "best": [float(b) for b in bests]}
