"""A run without data that is killed anywhere, and started again until it ends, is the run that was never killed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
KILLS = 3
PROGRAM = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
import jaxcb as jc

def walk(state):
    key, own = jax.random.split(state["key"])
    at = 0.9 * state["at"] + jax.random.normal(own, (5,))
    return {"key": key, "at": at, "steps": state["steps"] + 1}, {"square": jnp.mean(at**2)}

callbacks = [
    jc.EarlyStopping("square", mode="min", patience=1000),
    jc.CSVLogger("log.csv"),
    jc.BackupAndRestore(sys.argv[1], save_freq=9),
    jc.LambdaCallback(on_epoch_end=lambda epoch, logs: (print("epoch", epoch, flush=True), time.sleep(0.02))),
]
start = {"key": jax.random.key(7), "at": jnp.zeros(5), "steps": 0}
loop = jc.Loop(walk, lambda state: {"height": state["at"].sum()}, callbacks=callbacks)
result = loop.run(start, steps=400, steps_per_epoch=4, run_dir=sys.argv[1], resume=True, verbose=0)
early = result.callback_states["EarlyStopping"]
np.savez(sys.argv[2], *jax.tree.leaves({**result.model, "key": jax.random.key_data(result.model["key"])}),
         *jax.tree.leaves((early, result.history["square"], result.history["val_height"])))
"""


def begin(run_dir):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "0"}
    command = [sys.executable, "-c", PROGRAM, str(run_dir), str(run_dir.with_suffix(".npz"))]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_run_without_data_ends_as_one_that_was_not(tmp_path):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng, whole, killed = random.Random(seed), tmp_path / "whole", tmp_path / "killed"
    began = []
    for number in range(KILLS):
        with begin(killed) as process:
            assert process.stdout is not None
            lines = (line for line in process.stdout if line.startswith("epoch"))
            began.append(int(next(lines).split()[1]))
            for _ in range(rng.randint(5, 20)):
                next(lines)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        assert process.returncode < 0, f"life {number} was over before the kill"
    for run_dir in (killed, whole):
        _, errors = begin(run_dir).communicate(timeout=600)
        assert run_dir.with_suffix(".npz").exists(), errors
    assert began == sorted(began)
    assert began[-1] > 0  # it did go on
    with np.load(whole.with_suffix(".npz")) as a, np.load(killed.with_suffix(".npz")) as b:
        jax.tree.map(np.testing.assert_array_equal, dict(a), dict(b))
    for name in ("log.csv", "history.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
