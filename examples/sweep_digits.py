"""Thirty-two networks on handwritten digits, trained at once: rate, weight decay, patience and seed by random search.

    python examples/sweep_digits.py --run-dir runs/sweep_digits

Each member stops by itself and keeps its own best weights. The best one by the validation set is then tried on images
that no member has seen.
"""

import argparse
from pathlib import Path

import optax
from _digits_data import load
from flax import nnx

import jaxcb as jc


class MLP(nnx.Module):
    """Two hidden layers with layer normalisation."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden1 = nnx.Linear(64, 64, rngs=rngs)
        self.norm1 = nnx.LayerNorm(64, rngs=rngs)
        self.hidden2 = nnx.Linear(64, 64, rngs=rngs)
        self.norm2 = nnx.LayerNorm(64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.hidden1(x.reshape(len(x), -1))))
        x = nnx.relu(self.norm2(self.hidden2(x)))
        return self.head(x)


def loss_fn(model, batch):
    images, labels = batch
    logits = model(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}


def train(run_dir: Path, members: int, epochs: int, seed: int) -> float:
    """Sweeps, says what was found, and returns the best member's accuracy on the test set."""
    training, validation, test = load()
    points = jc.search.draws(
        members,
        {
            "seed": jc.search.integers(0, 9),
            "optimizer.learning_rate": jc.search.log_uniform(1e-4, 1e-1),
            "optimizer.weight_decay": jc.search.log_uniform(1e-4, 1.0),
            "callbacks.EarlyStopping.patience": jc.search.integers(2, 8),
        },
        seed=seed,
    )
    result = jc.sweep(
        lambda seed: MLP(nnx.Rngs(seed)),
        loss_fn,
        training,
        over=points,
        optimizer=optax.adamw,
        epochs=epochs,
        batch_size=64,
        validation_data=validation,
        callbacks=[
            jc.EarlyStopping(restore_best_weights=True),
            jc.ReduceLROnPlateau(factor=0.5, patience=2),
            jc.TerminateOnNaN(),
        ],
        run_dir=run_dir,
        checkpointing=jc.Checkpointing(overwrite=True),
    )
    picture = run_dir / "sweep.png"
    result.show("val_loss", rows=8)
    result.plot(picture)
    best = result.best("val_loss")
    accuracy = jc.evaluate(best.model, loss_fn, test)["accuracy"]
    print(f"best           member {best.member}: {best.point}")
    print(f"test accuracy  {accuracy:.2%} of {len(test[0])} images used for nothing else")
    print(f"files          {picture}, {run_dir / 'table.csv'}, {run_dir / 'history.csv'}")
    return accuracy


def arguments(run_dir: str) -> dict:
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=Path(run_dir), help="where the files go (%(default)s)")
    parser.add_argument("--members", type=int, default=32, help="how many networks (%(default)s)")
    parser.add_argument("--epochs", type=int, default=60, help="at most so many epochs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    return vars(parser.parse_args())


if __name__ == "__main__":
    train(**arguments(run_dir="runs/sweep_digits"))
