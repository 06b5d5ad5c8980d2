"""What a probe costs: the same run with and without one, taking turns in one process.

    python benchmarks/probe_cost.py [--turns 60]

For two networks and both executors it prints the median over turns of the ratio of the time with a probe of the
gradients' norm to the time without one, of wall-clock and of CPU time of all threads, each with its quartiles. A
second run without a probe stands beside them: what it differs from 1 by is noise.
"""

import argparse

from _networks import NETWORKS
from _paired import print_ratios, take_turns

import jaxcb as jc

PROBES = {"none": None, "none again": None, "every 100 steps": 100, "every step": 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--executors", nargs="+", choices=("looped", "stepped"), default=("looped", "stepped"))
    args = parser.parse_args()
    for name in args.networks:
        network = NETWORKS[name]
        for executor in args.executors:
            runs = {
                label: network.run(executor, probes={"grad_norm": jc.probes.grad_norm(every=n)} if n else None)
                for label, n in PROBES.items()
            }
            print_ratios(f"{name} {executor}", take_turns(runs, epochs=network.epochs, turns=args.turns), "none")


if __name__ == "__main__":
    main()
