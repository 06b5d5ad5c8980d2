"""Handwritten digits with several processes: the same script on a laptop, under SLURM, in Kubernetes and on a TPU pod.

As two processes on a laptop, each with one CPU device:

    python examples/distributed_digits.py --processes 2 --run-dir runs/distributed

On a cluster the scheduler starts the processes, which find each other; `--processes` is not given (see
docs/distributed.md). In all cases, the same command resumes an interrupted run.
"""

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import optax
from _digits_data import load, shift
from flax import nnx

import jaxcb as jc


class MLP(nnx.Module):
    """Two hidden layers with dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden1 = nnx.Linear(64, 256, rngs=rngs)
        self.hidden2 = nnx.Linear(256, 256, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.hidden1(x.reshape(len(x), -1)))
        return self.head(self.dropout(nnx.relu(self.hidden2(x))))


def loss_fn(model, batch, key, train):
    images, labels = batch
    logits = model(shift(images, key) if train else images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"accuracy": (logits.argmax(-1) == labels).mean()}


def train(run_dir: Path, epochs: int) -> None:
    """What each process does. All of them are given all of the data; each device takes its part of every batch."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    training, validation, test = load()
    result = jc.fit(
        MLP(nnx.Rngs(0)),
        loss_fn,
        training,
        optimizer=optax.adamw,
        learning_rate=optax.cosine_decay_schedule(2e-3, epochs * 18),
        epochs=epochs,
        batch_size=64,
        validation_data=validation,
        callbacks=[
            jc.EarlyStopping("val_accuracy", patience=15, restore_best_weights=True),
            jc.ReduceLROnPlateau(factor=0.5, patience=5),
            jc.CSVLogger("log.csv"),
            jc.TensorBoard("logs"),
            jc.BackupAndRestore(str(run_dir), save_freq="epoch"),
        ],
        run_dir=run_dir,
        resume=True,
        verbose=2,
        execution=jc.Execution(mesh=mesh),
    )
    measured = jc.evaluate(result.model, loss_fn, test, batch_size=64, mesh=mesh)  # all take part
    if jax.process_index() == 0:
        print(f"{jax.process_count()} processes, {jax.device_count()} devices")
        print(result.stop_reason or "all epochs done")
        print(f"test accuracy {measured['accuracy']:.4f}")


def launch(count: int, arguments: list[str]) -> int:
    """Starts so many processes of this script on this machine, one CPU device each, and waits for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *arguments, "--member", f"{address},{count},{index}"], env=environment
        )
        for index in range(count)
    ]
    try:
        return max(abs(process.wait()) for process in processes)
    except KeyboardInterrupt:  # the terminal has told them, too: they save, and leave
        return max(abs(process.wait()) for process in processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/distributed"), help="all processes must see it")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--processes", type=int, help="start so many on this machine")
    parser.add_argument("--member", help=argparse.SUPPRESS)  # of those that were started so
    options = parser.parse_args()
    if options.processes is not None:
        sys.exit(launch(options.processes, ["--run-dir", str(options.run_dir), "--epochs", str(options.epochs)]))
    if options.member is not None:
        address, count, index = options.member.split(",")
        jc.distributed.initialize(address, int(count), int(index))
    else:
        jc.distributed.initialize()  # finds SLURM, Kubernetes, Open MPI and Cloud TPU; without them: one process
    train(options.run_dir, options.epochs)
