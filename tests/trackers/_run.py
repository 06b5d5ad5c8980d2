"""A small run with a tracker: the program that the tests kill, and start again.

    python tests/trackers/_run.py RUN_DIR KIND [URI]

With `BUCKET=ADDRESS` in the environment, the run is in that bucket, and RUN_DIR is its local folder. It prints
`epoch N` after each epoch, and `done` at its end. What a tracker must hold stands in `RUN_DIR/log.jsonl`,
which has each record once.
"""

import os
import sys
import time

import jax.numpy as jnp
import numpy as np
import optax

import jaxcb as jc

EPOCHS = 12
TEST = {"test_loss": 0.25}


def logger(kind, uri):
    if kind == "wandb":
        return jc.callbacks.WandbLogger("digits", mode="offline", every=1)
    if kind == "mlflow":
        return jc.callbacks.MLflowLogger("digits", uri, every=1)
    return jc.callbacks.TrackioLogger("digits", "first", every=1)


def main(run_dir, kind, uri=None):
    data = np.linspace(-1, 1, 64, dtype=np.float32)

    def tell(epoch, logs):
        print(f"epoch {epoch}", flush=True)
        time.sleep(0.15)

    bucket = os.environ.get("BUCKET")
    result = jc.fit(
        {"w": jnp.zeros(())},
        lambda params, x: jnp.mean((params["w"] - x) ** 2),
        data,
        optimizer=optax.sgd,
        learning_rate=0.1,
        epochs=EPOCHS,
        batch_size=16,
        run_dir=bucket or run_dir,
        checkpointing=jc.Checkpointing(local_dir=run_dir if bucket else None),
        resume=True,
        verbose=0,
        callbacks=[
            logger(kind, uri),
            jc.callbacks.JSONLogger("log.jsonl", every=1),
            jc.BackupAndRestore(".", save_freq=6),
            jc.LambdaCallback(on_epoch_end=tell),
        ],
    )
    result.log(TEST)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
