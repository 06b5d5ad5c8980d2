"""Handwritten digits with Flax NNX: a schedule, a plateau on top of it, and early stopping.

    python examples/digits.py --run-dir runs/digits

Training sees the training set, every decision of a callback sees the validation set, and the test set is
read once, after the last decision.
"""

import argparse
from pathlib import Path

import optax
from _digits_data import load
from flax import nnx

import jaxcb as jc


class CNN(nnx.Module):
    """Two convolutions and a linear layer, with batch normalisation and dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(32, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(64, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        return self.head(self.dropout(x))


def loss_fn(model, batch):
    images, labels = batch
    logits = model(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}


def main(run_dir: Path = Path("runs/digits"), epochs: int = 60, seed: int = 0) -> float:
    """Trains, prints what happened, and returns the test accuracy."""
    train, validation, test = load()
    steps = epochs * (len(train[0]) // 64 + 1)
    result = jc.fit(
        CNN(nnx.Rngs(seed)),
        loss_fn,
        train,
        optimizer=optax.adamw,
        learning_rate=optax.warmup_cosine_decay_schedule(1e-4, 3e-3, steps // 20, steps, 1e-5),
        epochs=epochs,
        batch_size=64,
        validation_data=validation,
        callbacks=[
            jc.EarlyStopping(patience=8, restore_best_weights=True),
            jc.ReduceLROnPlateau(factor=0.5, patience=3, verbose=1),
            jc.TerminateOnNaN(),
            jc.CSVLogger("log.csv"),
        ],
        seed=seed,
        run_dir=run_dir,
        overwrite=True,
    )
    picture = run_dir / "curves.png"
    result.plot(picture)
    accuracy = jc.evaluate(result.model, loss_fn, test)["accuracy"]
    print(f"why it ended:   {result.stop_reason or 'all epochs done'}")
    print(f"test accuracy:  {accuracy:.2%} of {len(test[0])} images that no decision has seen")
    print("files:          " + ", ".join(str(path) for path in (*result.files, picture)))
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", type=Path, default=Path("runs/digits"), help="where the files go")
    parser.add_argument("--epochs", type=int, default=60, help="at most that many epochs")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights, dropout and the data's order")
    main(**vars(parser.parse_args()))
