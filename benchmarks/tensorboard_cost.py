"""What the TensorBoard callback costs a step: the same run with and without it, taking turns in one process.

    python benchmarks/tensorboard_cost.py [--turns 60]

For the looped executor it prints the median over turns of the ratio of the time with the callback to the time
without one, of wall-clock and of CPU time of all threads, each with its quartiles. A second run without it stands
beside them: what it differs from 1 by is noise.
"""

import argparse
import tempfile

from _networks import NETWORKS
from _paired import print_ratios, take_turns

import jaxcb as jc

EVERYTHING = ("params", "grads", "updates")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["784-128-10"])
    parser.add_argument("--executor", choices=("looped", "stepped"), default="looped")
    args = parser.parse_args()
    for name in args.networks:
        network = NETWORKS[name]
        with tempfile.TemporaryDirectory() as directory:
            callbacks = {
                "none": [],
                "none again": [],
                "update_freq='epoch'": [jc.TensorBoard(f"{directory}/epoch")],
                "update_freq=1": [jc.TensorBoard(f"{directory}/batch", update_freq=1)],
                "histogram_freq=1": [jc.TensorBoard(f"{directory}/all", histogram_freq=1, histograms=EVERYTHING)],
            }
            runs = {label: network.run(args.executor, own) for label, own in callbacks.items()}
            took = take_turns(runs, epochs=network.epochs, turns=args.turns)
        print_ratios(f"{name} {args.executor}", took, "none")


if __name__ == "__main__":
    main()
