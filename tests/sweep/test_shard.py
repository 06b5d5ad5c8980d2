"""Members spread over the devices of a mesh, in a process that simulates four."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxcb as jc

CHILD = """
import jax, numpy as np, optax
import jaxcb as jc
from loop._runs import control, loss_fn, make_data, make_params

assert jax.device_count() == 4
common = dict(
    over={"seed": range(8), "optimizer.learning_rate": [0.05, 0.3]}, optimizer=optax.adam, epochs=10, batch_size=16,
    validation_data=make_data(20, seed=1), callbacks=control(), repack=True, verbose=0,
)
one, many = (jc.sweep(make_params, loss_fn, make_data(), strategy=s, **common) for s in ("vmap", "shard"))
assert many.parts[0].strategy == "shard"
assert many.parts[0].sizes[0] == 16 and all(size % 4 == 0 for size in many.parts[0].sizes), many.parts[0].sizes
for a, b in zip(many, one, strict=True):
    assert a.stop_reason == b.stop_reason
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), a.params, b.params)
state = many.parts[0].state
print("devices of the weights:", len(state.params["w"].sharding.device_set))
try:
    jc.sweep(make_params, loss_fn, make_data(), over={"seed": range(3)}, optimizer=optax.sgd(0.1), epochs=1,
             strategy="shard", verbose=0)
except ValueError as error:
    print(error)
"""


# XLA's CPU backend needs a thread for each device that waits in a collective: on few busy cores it can wait for ever
@pytest.mark.long
def test_members_over_four_devices_equal_those_on_one():
    root = Path(jc.__file__).parent.parent
    own = (
        "--xla_force_host_platform_device_count=4 --xla_cpu_collective_call_terminate_timeout_seconds=240"  # few cores
    )
    flags = f"{own} {os.environ.get('XLA_FLAGS', '')}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{root}:{root / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "devices of the weights: 4" in done.stdout
    assert "Give 4 members" in done.stdout
