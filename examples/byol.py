"""BYOL: features of handwritten digits without labels, with a target network that is an average of the trained one.

    python examples/byol.py --run-dir runs/byol

Two networks see an image that was varied in two ways. The online network predicts the features of the target, which is
not trained: its weights are a moving average of the online ones (J.-B. Grill et al., 2020). They are state that is not
trained, so they are the `model_state` of the train state; best weights and checkpoints contain them. The loss says
nothing about features (it is least where they are all equal), so callbacks decide by how well the nearest neighbour
tells the digit.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _digits_data import load, shift

import jaxcb as jc

FEATURES, HIDDEN, DECAY = 16, 128, 0.99
TX = jc.adjustable_lr(lambda learning_rate: optax.adamw(learning_rate, weight_decay=1e-3), learning_rate=2e-3)


def layers(key: jax.Array, *sizes: int) -> list[dict[str, jax.Array]]:
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [{"w": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "b": jnp.zeros(b)} for k, a, b in pairs]


def run_layers(params: Any, x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = x @ layer["w"] + layer["b"]
        # normalized over the batch, without which all features become equal
        x = jax.nn.relu((x - x.mean(axis=0)) / (x.std(axis=0) + 1e-3))
    return x @ params[-1]["w"] + params[-1]["b"]


def unit(x: jax.Array) -> jax.Array:
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)


def project(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the features of images, and their projection, which the loss compares."""
    features = run_layers(params["encoder"], images.reshape(len(images), -1))
    return features, run_layers(params["projector"], jax.nn.relu(features))


def vary(images: jax.Array, key: jax.Array) -> jax.Array:
    """Moves an image by a pixel, changes its contrast, and adds noise."""
    keys = jax.random.split(key, 3)
    contrast = jax.random.uniform(keys[0], (len(images), 1, 1, 1), minval=0.6, maxval=1.4)
    return contrast * shift(images, keys[1]) + 0.15 * jax.random.normal(keys[2], images.shape)


def new_state(seed: int) -> jc.TrainState:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "encoder": layers(keys[0], 64, HIDDEN, FEATURES),
        "projector": layers(keys[1], FEATURES, HIDDEN, FEATURES),
        "predictor": layers(keys[2], FEATURES, HIDDEN, FEATURES),
    }
    target = {name: jax.tree.map(jnp.copy, params[name]) for name in ("encoder", "projector")}
    return jc.TrainState.create(params=params, model_state=target, tx=TX, seed=seed)


def train_step(state: jc.TrainState, images: jax.Array) -> tuple[jc.TrainState, dict[str, jax.Array]]:
    views = [vary(images, key) for key in jax.random.split(state.step_key())]
    targets = [unit(project(state.model_state, view)[1]) for view in views]

    def loss_fn(params: Any) -> jax.Array:
        predicted = [unit(run_layers(params["predictor"], project(params, view)[1])) for view in views]
        pairs = zip(predicted, reversed(targets), strict=True)  # each view predicts the target of the other
        return sum((2.0 - 2.0 * jnp.sum(p * t, axis=-1).mean() for p, t in pairs), start=jnp.zeros(()))

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    new = state.apply_gradients(grads)
    online = {name: new.params[name] for name in state.model_state}
    return new.replace(model_state=optax.incremental_update(online, state.model_state, 1 - DECAY)), {"loss": loss}


def by_hand(state: jc.TrainState, batches: jax.Array) -> tuple[jc.TrainState, jax.Array]:
    """The loop that `jc.Loop` replaces: no callbacks."""
    state, values = jax.lax.scan(train_step, state, batches)
    return state, values["loss"]


def nearest(params: Any, known: jax.Array, labels: jax.Array, images: jax.Array) -> jax.Array:
    """The label of the nearest known image, by the angle between features."""
    a, b = (unit(project(params, x)[0]) for x in (images, known))
    return jnp.asarray(labels)[jnp.argmax(a @ b.T, axis=1)]


def main(run_dir: Path, epochs: int, seed: int) -> jc.Result:
    (images, labels), validation, test = load()

    def eval_step(state: jc.TrainState, batch: Any) -> dict[str, jax.Array]:
        return {"accuracy": jnp.mean(nearest(state.params, images, labels, batch[0]) == batch[1])}

    loop = jc.Loop(
        train_step,
        eval_step,
        callbacks=[
            jc.EarlyStopping("val_accuracy", patience=40, restore_best_weights=True),
            jc.CSVLogger("log.csv"),
        ],
    )
    state = new_state(seed)
    result = loop.run(
        state,
        images,
        epochs=epochs,
        batch_size=128,
        validation_data=validation,
        validation_batch_size=len(validation[0]),
        run_dir=run_dir,
        seed=seed,
        checkpointing=jc.Checkpointing(overwrite=True),
    )
    print(f"end        {result.stop_reason or 'all epochs done'}")
    for name, params in (("untrained", state.params), ("trained", result.params)):
        right = jnp.mean(nearest(params, images, labels, test[0]) == test[1])
        print(f"{name:10} the nearest neighbour tells {right:.1%} of the test digits")
    print("files      " + ", ".join(str(path) for path in result.files))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=Path("runs/byol"), help="where the files go (%(default)s)")
    parser.add_argument("--epochs", type=int, default=200, help="at most so many epochs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the data")
    main(**vars(parser.parse_args()))
