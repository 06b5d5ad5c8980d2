"""Host metrics, read before each dispatch, and evaluators, which the host runs at a validation."""

import csv
import functools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcb._src.core.metric_names import as_text
from jaxcb._src.history.reader import JOURNAL, PLACE
from jaxcb._src.utils.errors import shown
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.csv import Table
from jaxcb._src.writers.run_handle import Run

PEAKS = Path(__file__).parents[2] / "inspection" / "peak_flops.csv"  # peaks of known devices, each with its source

BUILT_IN = ("elapsed", "steps_per_second", "examples_per_step", "step_flops", "peak_flops", "device_memory")


def host_metric_names(functions: Mapping[str, Callable[[], Any]]) -> tuple[str, ...]:
    """Returns the names of all host metrics: the built-in ones, then the user's.

    Raises:
        ValueError: for the name of a built-in metric.
    """
    for name in BUILT_IN:
        if name in functions:
            raise ValueError(f"metrics: {name!r} is the name of a built-in host metric. Rename yours.")
    return (*BUILT_IN, *functions)


class HostMetrics:
    """Reads host metrics. The built-in ones are only read if a callback uses them.

    Built-in: `elapsed` (seconds of the complete run), `steps_per_second` (of the last chunk, without validation and
    compilation), `examples_per_step` (rows of a batch), `step_flops` (floating point operations of a training step,
    from XLA's cost analysis and the loops of the step), `peak_flops` (of the run's devices per second, NaN if unknown)
    and `device_memory` (bytes in use on the fullest device of this process, NaN if the backend does not report it).

    Args:
        functions: name -> function without arguments that returns a number.
        read: names of the metrics that callbacks use. With a `run_dir` these are recorded in the journal.
        context: of the run.
        examples_per_step: rows of a batch.
        step_flops: returns the floating point operations of a step.
        devices: the devices of the run, on all processes.
    """

    def __init__(
        self,
        functions: Mapping[str, Callable[[], Any]],
        *,
        read: Sequence[str],
        context: Context,
        examples_per_step: int,
        step_flops: Callable[[], float],
        devices: Sequence[Any],
    ) -> None:
        self._functions = dict(functions)
        self._steps_per_second = math.nan
        self._before = 0.0  # seconds that earlier processes of the run took
        self._started = time.monotonic()
        self._flops: float | None = None
        self._step_flops = step_flops
        self._own: dict[str, Callable[[], Any]] = {
            "elapsed": lambda: self.elapsed,
            "steps_per_second": lambda: self._steps_per_second,
            "examples_per_step": lambda: examples_per_step,
            "step_flops": self._count_flops,
            "peak_flops": lambda: math.fsum(peak_flops(device.device_kind) for device in devices),
            "device_memory": lambda: _device_memory([d for d in devices if d.process_index == jax.process_index()]),
        }
        self.names = host_metric_names(functions)
        self._read = tuple(name for name in self.names if name in read)
        self._noted: dict[str, str] = {}
        self._journal: Table | None = None
        if context.run_dir is not None and self._read and context.processes.is_primary:
            file = context.append_file(context.run_dir / JOURNAL, "journal")
            self._journal = Table(file, [*PLACE, *self._read])

    @property
    def elapsed(self) -> float:
        """Seconds of the complete run, including earlier processes."""
        return self._before + time.monotonic() - self._started

    def resume(self, elapsed: float) -> None:
        """Continues a run that has taken this many seconds in earlier processes."""
        self._before = elapsed

    def note_speed(self, steps_per_second: float) -> None:
        """Sets the steps per second of the last chunk."""
        self._steps_per_second = steps_per_second

    def note_end(self, steps: int) -> None:
        """Sets the steps per second of a run that was too short to measure one: of all its time, compiling included."""
        if math.isnan(self._steps_per_second) and steps:
            self._steps_per_second = steps / max(time.monotonic() - self._started, 1e-9)

    def read(self, step: int) -> np.ndarray:
        """Reads all metrics in use, float32 (names,); the others are 0.

        Raises:
            TypeError: for a value that is not a number.
        """
        values = np.zeros(len(self.names), np.float32)
        for i, name in enumerate(self.names):
            if name in self._functions or name in self._read:
                values[i] = self._own[name]() if name in self._own else self._ask(name, step)
        return values

    def _ask(self, name: str, step: int) -> float:
        try:
            value = np.asarray(self._functions[name](), np.float32)
            if value.ndim:
                raise TypeError(f"the host metric {name!r} returned an array of shape {value.shape}, not a number.")
            return float(value)
        except Exception as error:
            error.add_note(f"This happened in the host metric {name!r}, read near step {step}.")
            raise

    def note(self, place: tuple[int, int, bool], values: np.ndarray) -> None:
        """Records the values in the journal with their epoch, step, and whether that step was validated."""
        if self._journal is None:
            return
        named = dict(zip(self.names, values, strict=True))
        row = {name: as_text(named[name]) for name in self._read}
        if row != self._noted:
            self._journal.write(dict(zip(PLACE, (str(int(x)) for x in place), strict=True)) | row)
            self._noted = row

    def close(self) -> None:
        """Makes the journal durable."""
        if self._journal is not None:
            self._journal.close()

    def _count_flops(self) -> float:
        if self._flops is None:
            self._flops = self._step_flops()
        return self._flops


@functools.cache
def peak_flops(kind: str) -> float:
    """Returns the peak FLOPs per second of a device, as its vendor states them; NaN for an unknown device.

    The peak is that of dense matrix products of bfloat16 with float32 accumulation, or of float16 on devices without
    bfloat16. A device is what JAX counts as one: a core of a TPU v2, v3 or 7x, otherwise a chip. The slices of a
    partitioned GPU (MIG), the GPUs of laptops and reduced variants ("RTX 4090 D") are unknown, although their names
    contain that of a known device.

    Args:
        kind: `device_kind` of a device, such as "NVIDIA H100 80GB HBM3".
    """
    if {"MIG", "Laptop", "Max-Q", "D"} & set(kind.split()):
        return math.nan
    with PEAKS.open(newline="", encoding="utf-8") as file:
        rows = {row["device"]: float(row["teraflops"]) * 1e12 for row in csv.DictReader(file)}
    # the longest name first, so that "H100 PCIe" is found before "H100"
    names = sorted(rows, key=len, reverse=True)
    return next((rows[name] for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", kind)), math.nan)


def _device_memory(devices: Sequence[Any]) -> float:
    used = [(device.memory_stats() or {}).get("bytes_in_use") for device in devices]
    known = [u for u in used if u is not None]
    return float(max(known)) if known else math.nan


class Evaluators:
    """Functions of the model whose results are added to the metrics of a validation.

    Args:
        functions: names of the results -> `fn(model)`, which returns a number if there is one name, otherwise a
            sequence or dict of numbers.
    """

    def __init__(self, functions: Mapping[tuple[str, ...], Callable[[Any], Any]]) -> None:
        self._functions = dict(functions)
        self.names = tuple(name for names in self._functions for name in names)

    def __call__(self, run: Run, step: int) -> dict[str, np.ndarray]:
        """Runs all evaluators on the current model.

        Args:
            run: provides the model.
            step: number of the step, for errors.

        Returns:
            name -> float32 ().
        """
        out: dict[str, np.ndarray] = {}
        for names, function in self._functions.items():
            try:
                out |= _named(names, function(run.model))
            except Exception as error:
                error.add_note(f"This happened in the evaluator {', '.join(names)}, at step {step}.")
                raise
        return out


def _named(names: tuple[str, ...], result: Any) -> dict[str, np.ndarray]:
    if isinstance(result, Mapping):
        values: dict[Any, Any] = dict(result)
    else:
        listed = (result,) if len(names) == 1 else tuple(result)
        values = dict(zip(names, listed, strict=True)) if len(listed) == len(names) else dict(enumerate(listed))
    if set(values) != set(names):
        raise ValueError(f"it returned {sorted(map(str, values))}, expected values for {', '.join(names)}.")
    for name, value in values.items():
        if np.asarray(value).dtype.kind in "OSU":
            raise TypeError(f"it returned {shown(value)} for {name}, expected a number.")
    arrays = {name: np.asarray(value, np.float32) for name, value in values.items()}
    for name, array in arrays.items():
        if array.ndim:
            raise ValueError(f"{name} is an array of shape {array.shape}, expected a number.")
    return arrays
