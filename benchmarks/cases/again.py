"""What the second call costs in a process: in a notebook, in cross-validation, in active learning."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _case import Case, NotTheSame, Outcomes
from _networks import NETWORKS
from _race import Baton

SMALL = NETWORKS["784-128-10"]._replace(rows=1280)
EPOCHS, FOLDS, HANDED_ON = 3, 10, 100


def _data() -> tuple[Any, Any, Any, Any]:
    (x, y), (val_x, val_y) = SMALL.data()
    return x, y, val_x, val_y


def _make_loss() -> Callable[..., Any]:
    """A new function each time, as when a notebook's cell is run again."""
    import optax

    def loss_fn(params: Any, batch: Any) -> Any:
        import jax.numpy as jnp

        hidden = jnp.maximum(batch[0] @ params[0]["w"] + params[0]["b"], 0)
        logits = hidden @ params[1]["w"] + params[1]["b"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
        return loss, {"accuracy": (logits.argmax(-1) == batch[1]).mean()}

    return loss_fn


def _fit(loss_fn: Any, params: Any, data: Any, validation: Any, *, epochs: int = EPOCHS, seed: int = 0) -> Any:
    import optax

    import jaxcb as jc

    callbacks = [
        jc.EarlyStopping(patience=100, restore_best_weights=True),
        jc.ReduceLROnPlateau(patience=100),
        jc.TerminateOnNaN(),
    ]
    return jc.fit(
        params,
        loss_fn,
        data,
        optimizer=optax.adam,
        learning_rate=1e-3,
        epochs=epochs,
        batch_size=SMALL.batch_size,
        validation_data=validation,
        callbacks=callbacks,
        seed=seed,
        verbose=0,
    )


def _cpu(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def _ours(which: str) -> Any:
    """CPU seconds of one of our calls; the calls before it are not counted."""

    def train(baton: Baton) -> dict[str, Any]:
        import jax

        import jaxcb as jc

        x, y, val_x, val_y = _data()
        params, loss_fn = jax.tree.map(jax.numpy.asarray, SMALL.params()), _make_loss()

        def train_step(state: Any, batch: Any) -> Any:
            (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch)
            return state.apply_gradients(grads), {"loss": loss}

        import optax

        loop, state = jc.Loop(train_step), jc.TrainState.create(params=params, tx=optax.adam(1e-3))
        calls: dict[str, Callable[[], Any]] = {
            "fit": lambda: _fit(loss_fn, params, (x, y), (val_x, val_y)),
            "fit, new functions": lambda: _fit(_make_loss(), params, (x, y), (val_x, val_y)),
            "Loop.run": lambda: loop.run(state, (x, y), epochs=EPOCHS, batch_size=SMALL.batch_size, verbose=0),
            "evaluate": lambda: jc.evaluate(params, loss_fn, (val_x, val_y), batch_size=128),
            "predict": lambda: jc.predict(params, val_x, batch_size=128, fn=_apply),
        }
        name, _, number = which.rpartition(" ")
        first = _cpu(calls[name])
        return {"measured": first if number == "1" else _cpu(calls[name]), "steps": 0}

    return train


def _apply(params: Any, x: Any) -> Any:
    return x @ params[0]["w"]


def _keras(second: bool) -> Any:
    def train(baton: Baton) -> dict[str, Any]:
        import keras
        from _keras import model_of
        from keras import callbacks as kc

        x, y, val_x, val_y = _data()
        model = model_of(SMALL)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])

        def fit() -> None:
            callbacks = [kc.EarlyStopping("val_loss", patience=100, restore_best_weights=True), kc.TerminateOnNaN()]
            callbacks.append(kc.ReduceLROnPlateau("val_loss", patience=100))
            model.fit(
                x, y, batch_size=SMALL.batch_size, epochs=EPOCHS, validation_data=(val_x, val_y),
                callbacks=callbacks, verbose=0,
            )  # fmt: skip

        first = _cpu(fit)
        return {"measured": _cpu(fit) if second else first, "steps": 0}

    return train


def _folds(kept: bool) -> Any:
    """CPU seconds of cross-validation of a network for the digits."""

    def train(baton: Baton) -> dict[str, Any]:
        import jax
        import jax.numpy as jnp
        import optax
        from sklearn.datasets import load_digits

        import jaxcb as jc

        x, y = load_digits(return_X_y=True)
        x, y = (x / 16).astype(np.float32), y.astype(np.int32)
        rows = np.random.default_rng(0).permutation(len(x))[: 10 * (len(x) // 10)].reshape(10, -1)
        key = jax.random.key(0)
        params = {"w": 0.1 * jax.random.normal(key, (64, 64)), "v": 0.1 * jax.random.normal(key, (64, 10))}

        def loss_fn(params: Any, batch: Any) -> Any:
            logits = jnp.tanh(batch[0] @ params["w"]) @ params["v"]
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
            return loss, {"accuracy": (logits.argmax(-1) == batch[1]).mean()}

        def all_folds() -> list[float]:
            found = []
            for fold in range(FOLDS):
                if not kept:
                    jc.clear_caches()
                    jax.clear_caches()
                held, rest = rows[fold], np.delete(rows, fold, 0).ravel()
                result = jc.fit(
                    params, loss_fn, (x[rest], y[rest]), optimizer=optax.adam, learning_rate=1e-3, epochs=10,
                    batch_size=32, validation_data=(x[held], y[held]), seed=fold, verbose=0,
                    callbacks=[jc.EarlyStopping(patience=3, restore_best_weights=True)],
                )  # fmt: skip
                found.append(float(result.history["val_accuracy"][-1]))
            return found

        accuracies: list[float] = []
        measured = _cpu(lambda: accuracies.extend(all_folds()))
        return {"measured": measured, "steps": 0, "accuracy": float(np.mean(accuracies))}

    return train


def _handed_on(kept: bool) -> Any:
    """CPU seconds of a fit of one epoch that goes on with the weights of the last one, the mean of many."""

    def train(baton: Baton) -> dict[str, Any]:
        import jax

        import jaxcb as jc

        x, y, val_x, val_y = _data()
        loss_fn, count = _make_loss(), HANDED_ON if kept else 5

        def fits() -> None:
            params: Any = jax.tree.map(jax.numpy.asarray, SMALL.params())
            for number in range(count):
                if not kept:
                    jc.clear_caches()
                    jax.clear_caches()
                params = _fit(loss_fn, params, (x, y), (val_x, val_y), epochs=1, seed=number).params

        return {"measured": _cpu(fits) / count, "steps": 0}

    return train


def _something(outcomes: Outcomes) -> str:
    if not all(outcome["measured"] > 0 for outcome in outcomes.values()):
        raise NotTheSame(f"something took no time: {json.dumps(outcomes)}")
    accuracies = {round(outcome["accuracy"], 6) for outcome in outcomes.values() if "accuracy" in outcome}
    if len(accuracies) > 1:
        raise NotTheSame(f"accuracies differ: {sorted(accuracies)}")
    return ""


def _case(name: str, title: str, first: str, second: str, most: float, **more: Any) -> Case:
    return Case(
        name, f"{title}: CPU time of the second call against the first",
        {second: _ours(second), first: _ours(first), **more},
        _something, most=most, against=(first,), unit="CPU s", fresh=True, rounds=5,
    )  # fmt: skip


CASES = [
    _case(
        "second-fit", "784-128-10, three callbacks, three epochs", "fit 1", "fit 2", 0.03,
        **{"Keras, first fit": _keras(False), "Keras, second fit": _keras(True)},
    ),
    _case("second-fit-new", "the same with new functions", "fit, new functions 1", "fit, new functions 2", 0.3),
    _case("second-run", "784-128-10, Loop.run", "Loop.run 1", "Loop.run 2", 0.05),
    _case("second-evaluate", "784-128-10", "evaluate 1", "evaluate 2", 0.05),
    _case("second-predict", "784-128-10", "predict 1", "predict 2", 0.1),
    Case(
        "ten-folds", "ten folds of cross-validation of the digits, against programs that are not kept",
        {"kept": _folds(True), "not kept": _folds(False)},
        _something, most=0.2, unit="CPU s", fresh=True, rounds=3,
    ),
    Case(
        "handed-on", f"{HANDED_ON} fits of one epoch that hand weights on, each, against programs that are not kept",
        {"kept": _handed_on(True), "not kept": _handed_on(False)},
        _something, most=0.05, unit="CPU s", fresh=True, rounds=3,
    ),
]  # fmt: skip
