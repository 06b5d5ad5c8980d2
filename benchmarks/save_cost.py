"""What a save costs the loop: the time that a run's store blocks its caller, beside plain Orbax doing the same.

    python benchmarks/save_cost.py [--sizes 1 100 1000] [--rounds 7] [--leaves 50] [--directory /tmp]

For each size in MB it prints the median milliseconds that `Store.save` blocks and those of Orbax's own
`save_async` of the same arrays as a dictionary, interleaved; the median ratio of the two with the smallest and
largest of a round; and the seconds until each is complete, where the store has also read all files back and vouched
for them. Random numbers, which do not compress. What was written is deleted after each save.
"""

import argparse
import contextlib
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxcb._src.checkpointing.store import Store


def make_leaves(megabytes, count):
    size = max(1, megabytes * 1_000_000 // 4 // count)
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(lambda key: jax.random.normal(key, (size,), jnp.float32))
    return jax.block_until_ready({f"layer_{i}/kernel": draw(key) for i, key in enumerate(keys)})


def time_store(directory, leaves):
    with contextlib.closing(Store(directory, say=print)) as store:
        began = time.perf_counter()
        store.save(1, leaves, {"epoch": 1})
        blocked = time.perf_counter()
    return blocked - began, time.perf_counter() - began


def time_orbax(directory, leaves):
    tree = {name.replace("/", "."): leaf for name, leaf in leaves.items()}
    began = time.perf_counter()
    response = ocp.save_async(directory, tree)
    blocked = time.perf_counter()
    response.result()
    return blocked - began, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description="What a save costs the loop.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 100, 1000], help="MB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--leaves", type=int, default=50)
    parser.add_argument("--directory", type=Path, default=None)
    args = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, {args.leaves} arrays, {args.rounds} rounds")
    print(f"{'':5}  {'blocked, ms':>25}  {'':23}  {'total, s':>20}")
    print(f"{'MB':>5}  {'store':>17} {'Orbax':>7}  {'ratio':>6} {'min to max':>16}  {'store':>14} {'Orbax':>5}")
    ways = {"store": time_store, "orbax": time_orbax}
    for megabytes in args.sizes:
        leaves = make_leaves(megabytes, args.leaves)
        times = {way: [] for way in ways}
        for number in range(args.rounds + 1):
            for way in sorted(ways, reverse=bool(number % 2)):  # no one is always first
                parent = Path(tempfile.mkdtemp(prefix="jaxcb_save_cost_", dir=args.directory))
                try:
                    taken = ways[way](parent / "checkpoint", leaves)
                finally:
                    shutil.rmtree(parent)
                if number:  # the first round warms up
                    times[way].append(taken)
        blocked, total = ({way: [taken[which] for taken in found] for way, found in times.items()} for which in (0, 1))
        ratios = [ours / theirs for ours, theirs in zip(blocked["store"], blocked["orbax"], strict=True)]
        middle = {way: statistics.median(found) for way, found in blocked.items()}
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(
            f"{megabytes:5}  {middle['store'] * 1e3:17.1f} {middle['orbax'] * 1e3:7.1f}  "
            f"{statistics.median(ratios):6.3f} {spread:>16}  "
            f"{statistics.median(total['store']):14.2f} {statistics.median(total['orbax']):5.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
