"""Times of the command line: `python benchmarks/cli.py`. It makes runs of its own in a temporary folder.

Each command is a process of its own, as a user starts it. Of some rounds the shortest counts: its time, and the
seconds of processors that it used, which other programs on the machine change little.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax

import jaxcb as jc


def make_run(run_dir: Path) -> None:
    """Trains a small run with callbacks that decide."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    y = (x @ np.ones((3, 1)) + rng.normal(size=(64, 1))).astype(np.float32)
    jc.fit(
        {"w": jnp.zeros((3, 1))},
        lambda params, batch: jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2),
        (x, y),
        validation_split=0.5,
        optimizer=optax.sgd,
        learning_rate=0.1,
        epochs=20,
        batch_size=8,
        run_dir=run_dir,
        verbose=0,
        callbacks=[jc.EarlyStopping(patience=19), jc.ReduceLROnPlateau(patience=5)],
    )


def write_history(path: Path, epochs: int) -> None:
    """Writes a history of a given length: a curve that falls, with noise."""
    rng = np.random.default_rng(1)
    loss = 1 / np.sqrt(np.arange(1, epochs + 1)) + 0.05 * rng.random(epochs)
    with path.open("w") as file:
        file.write("step,epoch,base_learning_rate,learning_rate,loss,val_loss\n")
        file.writelines(f"{4 * i + 4},{i},0.1,0.1,{a:.7g},{1.1 * a:.7g}\n" for i, a in enumerate(loss))


def seconds(*arguments: object, rounds: int) -> tuple[float, float]:
    """Returns the shortest time of a command, and the fewest seconds of processors."""
    times, used = [], []
    for _ in range(rounds):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "jaxcb", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(time.perf_counter() - started)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times), min(used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_run(folder / "one")
        for i in range(1000):
            shutil.copytree(folder / "one", folder / "many" / f"{i:04d}")
        long = Path(shutil.copytree(folder / "one", folder / "long"))
        write_history(long / "history.csv", 100_000)
        log = folder / "log.csv"
        write_history(log, 1000)
        stopping = 'EarlyStopping(monitor="val_loss")'
        grid = ["--set", "EarlyStopping.patience=1..100", "--set", "EarlyStopping.min_delta=0..0.0099..0.0001"]
        report = folder / "report.html"
        rows = [
            ("start (--help)", seconds("--help", rounds=rounds), 0.3),
            ("show of a run", seconds("show", folder / "one", rounds=rounds), None),
            ("ls of 1,000 runs", seconds("ls", folder / "many", rounds=rounds), 2),
            (
                "replay of 10,000 configurations x 1,000 epochs",
                seconds("replay", log, "--callback", stopping, *grid, rounds=rounds),
                10,
            ),
            ("report of 100,000 epochs", seconds("report", long, "-o", report, rounds=rounds), 5),
        ]
        for name, (taken, used), limit in rows:
            goal = "" if limit is None else f"   (under {limit} s)"
            print(f"{name:50} {taken:6.2f} s, {used:6.2f} s of processors{goal}")
        print(f"{'size of that report':50} {report.stat().st_size / 1e6:6.2f} MB   (under 2 MB)")


if __name__ == "__main__":
    main()
