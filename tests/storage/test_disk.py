"""A disk that fails under a run: one readable error, and nothing is made again in silence."""

import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcb as jc

X = np.linspace(-1.0, 1.0, 32, dtype=np.float32)[:, None]
WRITERS = {
    "none": list,
    "CSVLogger": lambda: [jc.CSVLogger("log.csv")],
    "JSONLogger": lambda: [jc.callbacks.JSONLogger("log.jsonl")],
    "TensorBoard": lambda: [jc.TensorBoard("logs", write_graph=False)],
    "ModelCheckpoint": lambda: [jc.ModelCheckpoint("m", "loss", save_weights_only=True)],
}


def fit(run_dir, act, own):
    def on_epoch_end(epoch, logs):
        if epoch == 1:
            act()

    return jc.fit(
        {"w": jnp.zeros((1, 1))}, lambda p, b: jnp.mean((b[0] @ p["w"] - b[1]) ** 2), (X, 3 * X),
        optimizer=optax.sgd, learning_rate=0.1, epochs=4, batch_size=8, run_dir=run_dir, verbose=0,
        callbacks=[jc.LambdaCallback(on_epoch_end=on_epoch_end), *own],
    )  # fmt: skip


@pytest.mark.parametrize("how", ["removed", "moved"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_directory_that_vanished_is_not_made_again(tmp_path, writer, how):
    run_dir = tmp_path / "run"

    def act():
        if how == "removed":
            shutil.rmtree(run_dir)
        else:
            run_dir.rename(tmp_path / "moved")

    with pytest.raises(FileNotFoundError, match=r"cannot (write|save) the .*run"):
        fit(run_dir, act, WRITERS[writer]())
    assert not run_dir.exists()


def test_a_folder_in_place_of_a_log_is_named(tmp_path):
    run_dir = tmp_path / "run"

    def act():
        (run_dir / "history.csv").unlink()
        (run_dir / "history.csv").mkdir()

    with pytest.raises(IsADirectoryError, match=r"cannot write the CSV file.*history\.csv"):
        fit(run_dir, act, [])
