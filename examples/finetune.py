"""Fine-tuning: a backbone trained on the digits 0 to 4 learns 5 to 9 from a few images of each.

    python examples/finetune.py

A new head knows nothing, and its first gradients would spoil what the backbone has learnt. So `jc.callbacks.Freeze`
keeps the backbone as it is until the head is of use, and then lets it train, too, in the same run and the same compiled
program. Beside it: the same run from random weights, with the backbone never frozen, and frozen for ever. Look at
how far the backbone moves. Images as small as these can be learnt from scratch about as well, and with so few of
them the accuracies change by some percent with the seed.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _digits_data import load, shift
from flax import nnx

import jaxcb as jc


class Backbone(nnx.Module):
    """From images, (rows, 8, 8, 1), to features, (rows, 64)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense1 = nnx.Linear(64, 128, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.dense2 = nnx.Linear(128, 64, kernel_init=nnx.initializers.he_normal(), rngs=rngs)

    def __call__(self, images):
        return nnx.relu(self.dense2(nnx.relu(self.dense1(images.reshape(len(images), -1)))))


class Classifier(nnx.Module):
    """A backbone, whose parameters are `backbone/...`, and a head for five digits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.backbone = Backbone(rngs)
        self.head = nnx.Linear(64, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.backbone(x))


def loss_fn(model, batch):
    images, labels = batch
    logits = model(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}


def varied_loss_fn(model, batch, key, train):
    """The same on images that are moved about while training, so that the backbone learns what can be built upon."""
    images, labels = batch
    return loss_fn(model, (shift(images, key) if train else images, labels))


def only(part, digits: range, of_each: int | None = None):
    """Keeps some digits, with labels from 0, and at most so many images of each."""
    images, labels = part
    rows = np.concatenate([np.flatnonzero(labels == digit)[:of_each] for digit in digits])
    return images[rows], labels[rows] - digits.start


def moved(before, after) -> float:
    """How far weights have gone, as a part of their norm."""
    difference = jax.tree.map(jnp.subtract, after, before)
    return float(optax.tree.norm(difference) / optax.tree.norm(before))


def learn_low(training, validation, epochs: int, seed: int) -> Classifier:
    """Trains on the digits 0 to 4."""
    result = jc.fit(
        Classifier(nnx.Rngs(seed)),
        varied_loss_fn,
        training,
        optimizer=optax.adam,
        learning_rate=2e-3,
        epochs=epochs,
        batch_size=64,
        validation_data=validation,
        callbacks=[jc.EarlyStopping(patience=10, restore_best_weights=True)],
        seed=seed,
        verbose=0,
    )
    return result.model


def learn_high(backbone: Backbone, training, epochs: int, freeze: list[jc.Callback], seed: int) -> Classifier:
    """Trains a new head, and the backbone as far as it is not frozen, on a few images of the digits 5 to 9."""
    model = Classifier(nnx.Rngs(seed))
    model.backbone = nnx.clone(backbone)
    result = jc.fit(
        model,
        loss_fn,
        training,
        optimizer=optax.adam,
        learning_rate=optax.cosine_decay_schedule(1e-2, epochs),
        epochs=epochs,
        batch_size=len(training[0]),
        callbacks=freeze,
        seed=seed,
        verbose=0,
    )
    return result.model


def main(epochs: int, low_epochs: int, of_each: int, seed: int) -> dict[str, float]:
    training, validation, test = load()
    low, high = range(5), range(5, 10)
    learnt = learn_low(only(training, low), only(validation, low), low_epochs, seed)
    right = jc.evaluate(learnt, loss_fn, only(test, low))["accuracy"]
    print(f"digits 0 to 4: {right:.1%} of {len(only(test, low)[0])} test images right")

    few = only(training, high, of_each)
    others = [np.concatenate(parts) for parts in zip(only(validation, high), only(test, high), strict=True)]
    new = Backbone(nnx.Rngs(seed + 1))
    ways = {
        "from random weights": (new, []),
        "never frozen": (learnt.backbone, []),
        "frozen for ever": (learnt.backbone, [jc.callbacks.Freeze("backbone/**")]),
        f"frozen until epoch {epochs // 2}": (
            learnt.backbone,
            [jc.callbacks.Freeze("backbone/**", until_epoch=epochs // 2)],
        ),
    }
    print(f"digits 5 to 9, from {of_each} images of each:  right of {len(others[0])}   backbone moved by")
    reached = {}
    for name, (backbone, freeze) in ways.items():
        model = learn_high(backbone, few, epochs, freeze, seed + 2)
        reached[name] = jc.evaluate(model, loss_fn, tuple(others))["accuracy"]
        distance = moved(nnx.state(backbone), nnx.state(model.backbone))
        print(f"  {name:37}{reached[name]:8.1%}   {distance:17.1%}")
    return reached


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=200, help="of learning 5 to 9 (%(default)s)")
    parser.add_argument("--low-epochs", type=int, default=60, help="of learning 0 to 4, at most (%(default)s)")
    parser.add_argument("--of-each", type=int, default=2, help="images of each new digit (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the data")
    main(**vars(parser.parse_args()))
