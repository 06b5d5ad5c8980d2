"""Digits with all that a run has to keep: the program that the kill test kills, and starts again.

    python tests/loop/_digits_run.py RUN_DIR [--executor stepped] [--data stream] [--save-freq 7] [--wait-at fsync 3]
                                             [--bucket s3://bucket/run] [--lease 1]

It prints `started` when the run begins, `step N` when the host has read that far, `deaf` when it takes no more signals,
and `done` at its end; what the run came to stands then, leaf by leaf, in `RUN_DIR/end.npz`. With `--wait-at` it prints
`at NAME` before the n-th such change that a save makes of the disk, and waits there to be killed. With `--bucket` the
run is there, and RUN_DIR is its local folder.
"""

import argparse
import os
from pathlib import Path

import jax
import numpy as np
import optax
from _blocks import use_blocks
from flax import nnx
from loop._changes import wait_at_change
from sklearn.datasets import load_digits

import jaxcb as jc
from jaxcb._src.loop.host.results import Results
from jaxcb._src.loop.host.stops import Signals
from jaxcb._src.storage.buckets import lease

ROWS, HELD = 490, 200  # 16 steps an epoch, the last one of fewer rows


class Net(nnx.Module):
    """One hidden layer with batch normalisation and dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 24, rngs=rngs)
        self.norm = nnx.BatchNorm(24, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(24, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.hidden(x)))))


def loss_fn(model, batch):
    images, labels = batch
    logits = model(images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}


class Batches:
    """A source that can be walked anew each epoch, and no array."""

    def __init__(self, images, labels, size):
        self.images, self.labels, self.size = images, labels, size

    def __iter__(self):
        for start in range(0, len(self.images), self.size):
            yield self.images[start : start + self.size], self.labels[start : start + self.size]


def callbacks(save_freq):
    return [
        jc.EarlyStopping(patience=2, min_delta=0.1, restore_best_weights=True),
        jc.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=0.1),
        jc.SwapEMAWeights(decay=0.9),
        jc.CSVLogger("log.csv"),
        jc.CSVLogger("appended.csv", append=True, name="appended"),
        jc.callbacks.JSONLogger("log.jsonl"),
        jc.callbacks.NormMonitor(every=5),
        jc.TensorBoard(histogram_freq=2, update_freq=4, embeddings_freq=2, embeddings_metadata={"head/kernel": None}),
        jc.ModelCheckpoint("exports/{epoch:02d}", save_weights_only=True, keep_best=1, async_=True),
        jc.BackupAndRestore("below run_dir", save_freq=save_freq),
    ]


def train(run_dir: Path, executor: str, data: str, save_freq: int, bucket: str | None) -> jc.Result:
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16.0).astype(np.float32), labels.astype(np.int32)
    training, held = (images[:ROWS], labels[:ROWS]), (images[ROWS:][:HELD], labels[ROWS:][:HELD])
    streamed = data == "stream"
    return jc.fit(
        Net(nnx.Rngs(0)),
        loss_fn,
        Batches(*training, 32) if streamed else training,
        optimizer=optax.adam,
        learning_rate=2e-2,
        epochs=40,
        batch_size=None if streamed else 32,
        validation_data=Batches(*held, 64) if streamed else held,
        callbacks=callbacks(save_freq),
        seed=1,
        run_dir=bucket or run_dir,
        checkpointing=jc.Checkpointing(local_dir=run_dir if bucket else None),
        resume=True,
        verbose=2,
        execution=jc.Execution(executor=executor),
    )


def tell(word: str) -> None:
    os.write(1, f"{word}\n".encode())


def tell_steps() -> None:
    """Has the driver tell how far it has read."""
    read = Results.read

    def told(self, *given):
        status = read(self, *given)
        tell(f"step {int(status.step)}")
        return status

    Results.read = told  # pyright: ignore[reportAttributeAccessIssue]


def tell_deafness() -> None:
    """Has the run tell when it gives the signals back."""
    leave = Signals.__exit__

    def told(self, *given):
        tell("deaf")
        leave(self, *given)

    Signals.__exit__ = told  # pyright: ignore[reportAttributeAccessIssue]


def leaves_of(tree, name):
    """The leaves of a tree by name, keys as their numbers."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # pyright: ignore[reportPrivateImportUsage]
            leaf = jax.random.key_data(leaf)
        found[name + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return found


def write_end(result: jc.Result, run_dir: Path) -> None:
    """Writes all that a run came to; the file is there as a whole or not at all."""
    end = leaves_of(result.state, "state") | leaves_of(result.callback_states, "callbacks")
    end |= {f"history/{name}": np.asarray(values) for name, values in result.history.items()}
    end |= leaves_of(nnx.state(result.model), "model")
    end["stop_reason"] = np.asarray(str(result.stop_reason))
    end["stopped_epoch"] = np.asarray(str(result.stopped_epoch))
    for export in sorted((run_dir / "exports").iterdir()):
        end |= leaves_of(jc.load(export), f"exports/{export.name}")
    half = run_dir / "half.npz"
    np.savez(half, **end)
    half.rename(run_dir / "end.npz")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--executor", default="looped", choices=("looped", "stepped"))
    parser.add_argument("--data", default="arrays", choices=("arrays", "stream"))
    parser.add_argument("--save-freq", type=int, default=7)
    parser.add_argument("--wait-at", nargs=2)
    parser.add_argument("--bucket")
    parser.add_argument("--lease", type=float, default=lease.SECONDS)
    use_blocks()
    options = vars(parser.parse_args())
    at = options.pop("wait_at")
    lease.SECONDS = options.pop("lease")
    if at is not None:
        wait_at_change(at[0], int(at[1]))
    tell_steps()
    tell_deafness()
    tell("started")
    write_end(train(**options), options["run_dir"])
    tell("done")
