"""Handwritten digits with Flax NNX: a schedule, a plateau on top of it, early stopping, and all that TensorBoard shows.

    python examples/digits.py --run-dir runs/digits
    tensorboard --logdir runs/digits/logs

The weights are fitted to the training set, the callbacks decide by the validation set, and the test set is
used once, at the end.
"""

import argparse
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from _digits_data import load, shift
from flax import nnx
from matplotlib.figure import Figure

import jaxcb as jc


class CNN(nnx.Module):
    """Two convolutions and a linear layer, with batch normalisation and dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 64, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        return self.head(self.dropout(x))


def loss_fn(model, batch, key, train):
    images, labels = batch
    logits = model(shift(images, key) if train else images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}


def outputs(images, labels):
    """Shows images in TensorBoard's projector, where the network's outputs place them."""

    def on_epoch_end(state, metrics):
        points = jc.actions.Embedding(
            "digits",
            of=lambda train_state: train_state.model()(images),
            classes=labels,
            sprites=images,
            by="epoch",
            when=metrics.epoch % 10 == 0,
        )
        return state, points

    return on_epoch_end


def confusions(images, labels):
    """Shows in TensorBoard which digits are taken for which."""

    def count(train_state):
        taken = train_state.model()(images).argmax(-1)
        return jnp.zeros((10, 10), jnp.int32).at[labels, taken].add(1)

    def draw(values):
        (counts,) = values.values()
        figure = Figure(figsize=(4, 4), layout="tight")
        axes = figure.subplots()
        axes.imshow(counts, cmap="Blues", norm="symlog")
        axes.set(xlabel="taken for", ylabel="is", xticks=range(10), yticks=range(10))
        return figure

    def on_epoch_end(state, metrics):
        return state, jc.actions.Figure("confusion", draw, of=count, by="epoch", when=metrics.epoch % 10 == 0)

    return on_epoch_end


def train(model, run_dir: Path, epochs: int, seed: int) -> float:
    """Trains, says what happened, and returns the accuracy on the test set."""
    training, validation, test = load()
    steps = epochs * -(-len(training[0]) // 64)
    result = jc.fit(
        model,
        loss_fn,
        training,
        optimizer=optax.adamw,
        learning_rate=optax.warmup_cosine_decay_schedule(1e-4, 3e-3, steps // 20, steps, 3e-5),
        epochs=epochs,
        batch_size=64,
        validation_data=validation,
        callbacks=[
            jc.EarlyStopping(patience=8, restore_best_weights=True),
            jc.ReduceLROnPlateau(factor=0.5, patience=3, verbose=1),
            jc.TerminateOnNaN(),
            jc.CSVLogger("log.csv"),
            jc.TensorBoard(
                histogram_freq=5,
                histograms=("params", "grads", "updates", "activations"),
                write_images=True,
                write_steps_per_second=True,
                update_freq="batch",
                profile_batch=(30, 32),
                hparams={"augmentation": "shift"},
            ),
            jc.make_callback(on_epoch_end=confusions(*validation), name="Confusions"),
            jc.make_callback(on_epoch_end=outputs(*validation), name="Outputs"),
        ],
        seed=seed,
        run_dir=run_dir,
        checkpointing=jc.Checkpointing(overwrite=True),
    )
    picture = run_dir / "curves.png"
    result.plot(picture)
    accuracy = jc.evaluate(result.model, loss_fn, test)["accuracy"]
    print(f"test accuracy  {accuracy:.2%} of {len(test[0])} images used for nothing else")
    print(f"end            {result.stop_reason or 'all epochs done'}")
    print("files          " + "\n               ".join(str(path) for path in (*result.files, picture)))
    return accuracy


def arguments(run_dir: str) -> dict:
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=Path(run_dir), help="where the files go (%(default)s)")
    parser.add_argument("--epochs", type=int, default=60, help="at most so many epochs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the dropout and the order of the data")
    return vars(parser.parse_args())


if __name__ == "__main__":
    options = arguments(run_dir="runs/digits")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the second time, the programs are read from the disk
        jax.config.update("jax_compilation_cache_dir", str(options["run_dir"].resolve().parent / ".jax_cache"))
    train(CNN(nnx.Rngs(options["seed"])), **options)
