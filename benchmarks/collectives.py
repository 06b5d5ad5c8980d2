"""Collectives of a training step on eight simulated devices: jaxcb's compiled program beside a step written by hand.

    python benchmarks/collectives.py

Both are compiled by XLA's partitioner, and the collectives are counted in the text of the compiled program, with the
bytes that they exchange. It says whether the partitioning is right, not how fast it is: a loop around the step, the
records and the callbacks must add no collective to it.
"""

import os

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxcb as jc
from jaxcb._src.data.pipeline import plan_data
from jaxcb._src.loop.build import RunData, build_driver
from jaxcb._src.loop.compiled.traced_functions import RunFunctions
from jaxcb._src.loop.config import RunConfig
from jaxcb._src.sharding.placement import Placement
from jaxcb._src.writers.run_handle import Run
from jaxcb.writers import Context

ROWS, BATCH, FEATURES, HIDDEN = 2048, 512, 64, 128
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast"
_CALL = re.compile(rf"= (\(?[^=]*?\)?) (?:{_KINDS})(?:-start)?\(")
_KIND = re.compile(rf" ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+)(\d+)\[([\d,]*)\]")


def count(compiled):
    """Counts the collectives in a compiled program: kind -> (how many arrays, bytes of the results)."""
    arrays, size = Counter(), Counter()
    for line in compiled.as_text().splitlines():
        call = _CALL.search(line)
        if call is None:
            continue
        kind = _KIND.search(line).group(1)
        for _, bits, shape in _ARRAY.findall(call.group(1)):
            arrays[kind] += 1
            size[kind] += int(bits) // 8 * math.prod(int(n) for n in shape.split(",") if n)
    return {kind: (arrays[kind], size[kind]) for kind in sorted(arrays)}


def make_params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "hidden": {"kernel": jax.random.normal(keys[0], (FEATURES, HIDDEN)) / 8, "bias": jnp.zeros(HIDDEN)},
        "out": {"kernel": jax.random.normal(keys[1], (HIDDEN, FEATURES)) / 8},
    }


def loss_fn(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    error = hidden @ params["out"]["kernel"] - y
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def by_hand(mesh, sharding):
    """A step as one writes it with `jax.jit`: shardings of what comes in and goes out, and nothing else."""
    tx = optax.adam(1e-3)
    params = make_params()
    state = (params, tx.init(params))

    def spec(x):
        return PartitionSpec(*("data" if n == max(x.shape) else None for n in x.shape)) if x.size >= 4096 else None

    def own(x):
        return NamedSharding(mesh, (sharding == "fsdp" and spec(x)) or PartitionSpec())

    shardings = jax.tree.map(own, state)
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    def step(state, batch):
        params, opt_state = state
        (loss, values), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), {"loss": loss, **values}

    batch = tuple(jax.ShapeDtypeStruct((BATCH, FEATURES), jnp.float32) for _ in range(2))
    jitted = jax.jit(step, in_shardings=(shardings, split), out_shardings=(shardings, everywhere), donate_argnums=0)
    return jitted.lower(state, batch).compile()


def ours(mesh, sharding, executor, callbacks):
    """The program of our own: one step for the stepped executor, a loop around the same step for the looped one."""
    state = jc.TrainState.create(params=make_params(), tx=jc.adjustable_lr(optax.adam, learning_rate=1e-3))
    rows = np.zeros((ROWS, FEATURES), np.float32)
    names = ("steps", "steps_per_epoch", "validation_data", "validation_steps", "validation_batch_size", "metrics")
    config = RunConfig.of(
        "Loop.run", **dict.fromkeys((*names, "run_dir")), epochs=1, batch_size=BATCH, shuffle=True, validation_freq=1,
        seed=0, resume=False, verbose=0, execution=jc.Execution(executor=executor), checkpointing=jc.Checkpointing(),
    )  # fmt: skip
    driver, _ = build_driver(
        RunFunctions(jc.Step(loss_fn), None, jc.chain(*callbacks, jc.History())),
        state,
        config,
        data=RunData(plan_data((rows, rows), config.data), {}),
        context=Context(None, Run(None), 0, 1),
        placement=Placement.of(mesh, sharding, state),
    )
    inputs = driver.device.inputs_of(driver.feed.next(1, wait=True), driver._read_host_metrics(), 1)
    ran = driver.device.executor
    if executor == "looped":
        return ran._chunk.lower(driver.device.live, inputs).compile()
    rings = ran._new_rings()
    return ran._step.lower(driver.device.live, inputs, {name: rings[name] for name in ran._step_buffers}).compile()


def callbacks():
    """Some that look at each step, keep weights and steer."""
    return [
        jc.EarlyStopping("loss", patience=2, restore_best_weights=True),
        jc.ReduceLROnPlateau("loss", patience=1),
        jc.TerminateOnNaN(),
        jc.SwapEMAWeights(),
        jc.callbacks.SpikeDetection("loss"),
    ]


def main():
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    print(f"{len(jax.devices())} devices: arrays exchanged a step, and the bytes of the results")
    for sharding in ("replicated", "fsdp"):
        rows = {"by hand": by_hand(mesh, sharding)}
        for executor in ("looped", "stepped"):
            rows[f"{executor}, no callbacks"] = ours(mesh, sharding, executor, [])
            rows[f"{executor}, callbacks"] = ours(mesh, sharding, executor, callbacks())
        for name, compiled in rows.items():
            print(f"{sharding:>10} | {name:22} | {count(compiled)}")


if __name__ == "__main__":
    main()
