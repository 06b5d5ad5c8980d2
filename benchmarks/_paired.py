"""Runs that take turns in one process, so that noise meets them alike.

The noise of a shared machine comes in stretches of seconds. Turns of a fraction of a second meet the same noise, and
the median over many of them is far steadier than the ratio of two runs one behind the other.
"""

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jaxcb as jc


class Turn(NamedTuple):
    """What a turn took."""

    wall: float  # seconds
    cpu: float  # seconds of all threads; those who wait take none


class _Baton(jc.Callback):
    """Gives way to the others every so many epochs."""

    hand_on: Callable = jc.static()
    epochs: int = jc.static()

    def on_epoch_end(self, state, metrics):
        return state, jc.Call(self.hand_on, when=(metrics.epoch + 1) % self.epochs == 0)


def take_turns(
    runs: Mapping[str, Callable[[jc.Callback, int], object]], *, epochs: int, turns: int
) -> dict[str, list[Turn]]:
    """Times runs side by side.

    Args:
        runs: name -> function of a callback and a number of epochs, which trains that long with that callback.
        epochs: of a turn. Two turns more are run and not counted: they compile, and find their pace.
        turns: counted ones.

    Returns:
        Name -> its turns.
    """
    names, found, failed = list(runs), {name: [] for name in runs}, []
    current, changed = [0], threading.Condition()

    def train(number):
        began = [0.0, 0.0]

        def wait():
            with changed:
                changed.wait_for(lambda: current[0] == number or failed)
            began[:] = time.perf_counter(), time.process_time()

        def hand_on(run=None):
            found[names[number]].append(Turn(time.perf_counter() - began[0], time.process_time() - began[1]))
            with changed:
                current[0] = (number + 1) % len(names)
                changed.notify_all()
            if run is not None:
                wait()

        wait()
        try:
            runs[names[number]](_Baton(hand_on, epochs), epochs * (turns + 2))
        except BaseException as error:
            failed.append(error)
        hand_on()

    threads = [threading.Thread(target=train, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return {name: took[2 : turns + 2] for name, took in found.items()}


def print_ratios(title: str, took: Mapping[str, list[Turn]], base: str) -> None:
    """Prints the ratios of all runs to one of them: the median over turns, with its quartiles."""
    print(f"{title}: ratios to '{base}' over {len(took[base])} turns, median (quartiles)")
    for label, turns in took.items():
        if label != base:
            wall, cpu = (_ratio([t[i] for t in turns], [t[i] for t in took[base]]) for i in range(2))
            print(f"  {label:22} wall-clock {wall}   CPU time {cpu}", flush=True)


def _ratio(some: list[float], others: list[float]) -> str:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(some, others, strict=True)], n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
