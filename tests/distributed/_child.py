"""One process of a run of several, on one CPU device.

    python _child.py ADDRESS COUNT INDEX RUN_DIR OUT [NAME=VALUE...]

Trains a small model with all that must be agreed, and writes what it came to, as this process sees it, to `OUT.INDEX`.
"""

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import jax

if __name__ == "__main__":  # not where pytest looks into it for examples
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".jax_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    warnings.simplefilter("error")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it may have been ignored from the start

import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec

import jaxcb as jc

ROWS, WIDTH = 96, 8


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS + 32, WIDTH)).astype(np.float32)
    y = x @ rng.normal(size=(WIDTH, 1)).astype(np.float32) + rng.normal(size=(ROWS + 32, 1)).astype(np.float32)
    return (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:])


def loss_fn(params, batch):
    x, y = batch
    error = jnp.tanh(x @ params["w"]) @ params["v"] - y
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def params():
    w = np.random.default_rng(1).normal(size=(WIDTH, 16)).astype(np.float32) / 4
    return {"w": jnp.asarray(w), "v": jnp.zeros((16, 1))}


class Part:
    """This process's part of each batch: what a stream of several processes has to be."""

    def __init__(self, rows, index, count, size=16, short=False):
        self.rows, self.index, self.count, self.size = rows, index, count, size
        self.end = ROWS - size * short

    def __iter__(self):
        for start in range(0, self.end, self.size):
            part = self.size // self.count
            own = slice(start + self.index * part, start + (self.index + 1) * part)
            yield jax.tree.map(lambda x, own=own: x[own], self.rows)


def sweep(train, held, run_dir):
    """Trains a population, and returns each member's validation losses."""
    found = jc.sweep(
        lambda key: params(),
        loss_fn,
        train,
        over={"seed": [0, 1, 2, 3]},
        optimizer=optax.adam,
        learning_rate=0.05,
        epochs=3,
        batch_size=16,
        validation_data=held,
        run_dir=run_dir,
        verbose=2,
    )
    return np.asarray(found.history["val_loss"]).tolist()


def callbacks_of(options, run_dir, slowed):
    callbacks = [
        jc.EarlyStopping(patience=int(options.get("patience", 3)), min_delta=0.02, restore_best_weights=True),
        jc.ReduceLROnPlateau(factor=0.5, patience=1, min_delta=0.02),
        jc.CSVLogger("log.csv"),
        jc.LambdaCallback(on_epoch_end=slowed),
        jc.ModelCheckpoint("best", save_best_only=True, save_weights_only=True),
        jc.make_callback(
            init=lambda: jnp.int32(0), on_epoch_end=lambda s, m: (s, jc.actions.Stop(m["outside"] > 99)), name="Outside"
        ),
    ]
    if "save" in options:
        callbacks.append(jc.BackupAndRestore(run_dir, save_freq=int(options["save"])))
    if options.get("tensorboard"):
        callbacks.append(jc.TensorBoard("tb"))
    return callbacks


def placement_of(options):
    if options.get("mesh") == "model":  # every process sees each row
        sharding = {"w": PartitionSpec(None, "model"), "v": PartitionSpec("model")}
        return {"mesh": jax.make_mesh((jax.device_count(),), ("model",)), "sharding": sharding}
    if options.get("mesh", "1") == "1":
        return {"mesh": jax.make_mesh((jax.device_count(),), ("data",)), "sharding": options.get("sharding")}
    return {}


def main(address, count, index, run_dir, out, **options):
    count, index = int(count), int(index)
    if count > 1:
        jc.distributed.initialize(
            address,
            count,
            index,
            heartbeat_timeout_seconds=int(options.get("heartbeat", 60)),
            initialization_timeout=300,
        )
    train, held = data()
    short = index == 1 and "short" in options
    if options.get("kind") == "sweep":
        Path(f"{out}.{index}").write_text(json.dumps(sweep(train, held, run_dir)))
        return
    train = Part(train, index, count, short=short) if options.get("data") == "stream" else train
    called = []

    def slowed(epoch, logs):
        called.append(epoch)
        if options.get("fail") == "call" and epoch == 2:
            raise RuntimeError("a user's function")

    beats, hold = [], int(options.get("hold", -1))

    def host():
        beats.append(index)
        if len(beats) == hold:  # what is to hit the run in its midst comes now
            Path(f"{out}.held").touch()
            while not Path(f"{out}.go").exists():
                time.sleep(0.01)
        if -1 < hold <= len(beats):
            time.sleep(0.3)  # process 0 looks once a second at what the others tell
        return index + 1.0

    try:
        result = jc.fit(
            params(),
            loss_fn,
            train,
            optimizer=optax.adam,
            learning_rate=0.05,
            epochs=int(options.get("epochs", 12)),
            batch_size=None if options.get("data") == "stream" else 16,
            validation_data=held,
            callbacks=callbacks_of(options, run_dir, slowed),
            metrics={
                "val_norm": jc.probes.evaluator(lambda model: float(jnp.sum(model["v"] ** 2))),
                "outside": jc.probes.host_metric(host),
            },
            run_dir=run_dir,
            resume=True,
            verbose=2,
            execution=jc.Execution(
                executor=options.get("executor"),
                resident=False if options.get("data") == "host" else None,
                steps_per_execution=int(options["steps"]) if "steps" in options else None,
                **placement_of(options),
            ),
        )
    except BaseException as error:
        print(f"ended with {type(error).__name__}: {error}", flush=True)
        raise
    trained = multihost_utils.process_allgather(result.params, tiled=True)
    report = {
        "history": {name: np.asarray(v).tolist() for name, v in result.history.items()},
        "stop_reason": result.stop_reason,
        "stopped_epoch": result.stopped_epoch,
        "called": called,
        "params": {name: np.asarray(v).tolist() for name, v in trained.items()},
        "step": int(result.state.step),
        "wait": int(result.callback_states["EarlyStopping"].wait),
    }
    Path(f"{out}.{index}").write_text(json.dumps(report))
    print("done", flush=True)


if __name__ == "__main__":
    positional = [a for a in sys.argv[1:] if "=" not in a]
    main(*positional, **dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a))
