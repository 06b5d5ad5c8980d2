"""Many runs in one process: memory, descriptors, threads and objects must not grow.

    python benchmarks/soak.py              # 300 runs
    python benchmarks/soak.py --runs 60

Prints the figures every tenth of the runs, and the growth per run after the first third. Exits with 1 if descriptors or
threads grow, or objects by more than 2 a run.
"""

import argparse
import gc
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import jaxcb as jc

X = np.linspace(-1.0, 1.0, 64, dtype=np.float32)[:, None]
OBJECTS = 2.0  # that may stay of a run


class Figures(NamedTuple):
    """What a process holds."""

    megabytes: float
    descriptors: int
    threads: int
    objects: int


def figures() -> Figures:
    gc.collect()
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    folder = Path("/proc/self/fd")
    descriptors = len(list(folder.iterdir())) if folder.exists() else 0
    megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Figures(round(megabytes, 1), descriptors, threading.active_count(), len(gc.get_objects()))


def loss_fn(params: Any, batch: Any) -> Any:
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def run(number: int, directory: Path) -> None:
    """A run with callbacks of all kinds, over arrays or batches."""
    jc.fit(
        {"w": jnp.zeros((1, 1))},
        loss_fn,
        (X, 3 * X) if number % 2 else [(X[i : i + 16], 3 * X[i : i + 16]) for i in range(0, 64, 16)],
        optimizer=optax.adam,
        learning_rate=0.1,
        epochs=2,
        batch_size=16 if number % 2 else None,
        validation_data=(X, 3 * X),
        run_dir=directory / f"run_{number}",
        resume=True,
        verbose=0,
        callbacks=[
            jc.SwapEMAWeights(decay=0.9),
            jc.EarlyStopping(patience=5, restore_best_weights=True),
            jc.ReduceLROnPlateau(patience=2),
            jc.CSVLogger("log.csv"),
            jc.callbacks.JSONLogger("log.jsonl"),
            jc.TensorBoard("logs", write_graph=False),
            jc.ModelCheckpoint("{epoch}", save_weights_only=True, max_to_keep=1),
            jc.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
            jc.callbacks.Timer(1e6),
        ],
    )


def soak(runs: int) -> list[Figures]:
    """Returns the figures after each run."""
    found = []
    with tempfile.TemporaryDirectory() as made:
        for number in range(runs):
            run(number, Path(made))
            found.append(figures())
            if (number + 1) % max(1, runs // 10) == 0:
                print(f"{number + 1:4d} runs: {found[-1]}", flush=True)
    return found


def growth(found: list[Figures]) -> dict[str, float]:
    """Returns the growth per run after the first third, from the medians of the parts after it."""
    rest = np.asarray(found[len(found) // 3 :], np.float64)
    half = len(rest) // 2
    per_run = (np.median(rest[half:], axis=0) - np.median(rest[:half], axis=0)) / half
    return {name: round(float(x), 3) for name, x in zip(Figures._fields, per_run, strict=True)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    grown = growth(soak(parser.parse_args().runs))
    print(f"growth per run: {grown}")
    sys.exit(grown["descriptors"] > 0 or grown["threads"] > 0 or grown["objects"] > OBJECTS)
