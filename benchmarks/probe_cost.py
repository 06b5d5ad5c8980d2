"""What a probe costs: the same run with and without one, interleaved.

    python benchmarks/probe_cost.py [--rounds 7]

For two networks and both executors it prints the median ratio of the time a step takes with a probe of the gradients'
norm to the time without one, and the smallest and largest ratio of a round. Times are taken between records that reach
the host by themselves, from the second fifth of a run on, so that compilation is left out.
"""

import argparse
import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcb as jc

SIZES = {"32-32-10": ((32, 32, 10), 32, 4096), "784-128-10": ((784, 128, 10), 128, 8192)}


def make_params(sizes):
    rng = np.random.default_rng(0)
    return [
        {"w": jnp.asarray(rng.normal(size=(m, n)) / np.sqrt(m), jnp.float32), "b": jnp.zeros(n)}
        for m, n in itertools.pairwise(sizes)
    ]


def loss_fn(params, batch):
    x, labels = batch
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def seconds_a_step(name, executor, probes, epochs):
    """Trains, and returns the seconds of a step in the run's later part."""
    sizes, batch_size, rows = SIZES[name]
    rng = np.random.default_rng(1)
    data = (rng.normal(size=(rows, sizes[0])).astype(np.float32), rng.integers(0, sizes[-1], rows).astype(np.int32))
    seen = []
    jc.fit(
        make_params(sizes), loss_fn, data, optimizer=optax.adam, learning_rate=1e-3, batch_size=batch_size,
        epochs=epochs, executor=executor, probes=probes, verbose=0,
        callbacks=[jc.LogTo(lambda step, values: seen.append((step, time.perf_counter())))],
    )  # fmt: skip
    (first, began), (last, ended) = seen[len(seen) // 5], seen[-1]
    return (ended - began) / (last - first)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()
    every = {"every 100 steps": 100, "every step": 1}
    print(f"{'network':12} {'executor':9} {'probe':16} {'ratio':>6}  smallest to largest of {args.rounds} rounds")
    for name in SIZES:
        for executor in ("looped", "stepped"):
            ratios = {label: [] for label in every}
            for number in range(args.rounds):
                order = [None, *every]
                order = order[number % 3 :] + order[: number % 3]  # no one is always first
                times = {}
                for label in order:
                    probes = {"grad_norm": jc.probes.grad_norm(every=every[label])} if label else None
                    times[label] = seconds_a_step(name, executor, probes, args.epochs)
                for label in every:
                    ratios[label].append(times[label] / times[None])
            for label, found in ratios.items():
                spread = f"{min(found):.3f} to {max(found):.3f}"
                print(f"{name:12} {executor:9} {label:16} {statistics.median(found):6.3f}  {spread}", flush=True)


if __name__ == "__main__":
    main()
