"""`Asked`: what a run is asked to do, checked."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxcb._src.core.chain import Chain
from jaxcb._src.data.feed import UNBOUNDED
from jaxcb._src.loop.compiled.position import EvalSchedule
from jaxcb._src.training.probes import Probe
from jaxcb._src.utils.local_path import local_path
from jaxcb._src.utils.validate import check_choice, check_int


def settings_of(arguments: Mapping[str, Any], callbacks: Chain, more: Mapping[str, Any]) -> dict[str, Any]:
    """Returns name -> number, text or boolean.

    Args:
        arguments: of the run; what is None is left out.
        callbacks: theirs are the numbers that a sweep can change, as `EarlyStopping.patience`.
        more: what else was set.
    """
    found = dict(arguments)
    for name, callback in callbacks.items():
        for field in dataclasses.fields(callback):  # pyright: ignore[reportArgumentType]
            value = getattr(callback, field.name)
            if not field.metadata.get("static") and np.ndim(value) == 0 and not isinstance(value, str | None):
                found[f"{name}.{field.name}"] = np.asarray(value).item()
    found |= more
    return {name: value for name, value in found.items() if _is_shown(value)}


def _is_shown(value: Any) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def name_of(value: Any) -> Any:
    """Returns a number as it is, and of a function its name; of one that another made, that one's."""
    if isinstance(value, Callable):
        name = getattr(value, "__qualname__", None) or getattr(getattr(value, "func", None), "__qualname__", None)
        return (name or type(value).__qualname__).split(".<locals>")[0]
    is_number = isinstance(value, int | float) or getattr(value, "shape", None) == ()
    return float(value) if is_number else None


@dataclass
class RunArguments:
    """The arguments of a run that are about how long, on what, and where; as `Loop.run` describes them.

    Attributes:
        cadence: when to validate.
        fixed_steps: steps of one call of the compiled loop, None to measure.

    Raises:
        ValueError: for arguments out of range.
    """

    epochs: int | None = None
    steps: int | None = None
    steps_per_epoch: int | None = None
    batch_size: int | None = None
    shuffle: bool = True
    remainder: str = "train"
    resident: bool | str = "auto"
    validation_data: Any = None
    validation_freq: int | Sequence[int] = 1
    eval_every: int | None = None
    validation_steps: int | None = None
    validation_batch_size: int | None = None
    probes: Mapping[str, Probe] | None = None
    evaluators: Mapping[Any, Callable[[Any], Any]] | None = None
    host_metrics: Mapping[str, Callable[[], Any]] | None = None
    seed: int = 0
    run_dir: str | Path | None = None
    resume: bool | str = False
    overwrite: bool = False
    on_save_error: str = "raise"
    steps_per_execution: int | str = "auto"
    executor: str = "auto"
    mesh: Mesh | None = None
    sharding: Any = None
    verbose: int | str = "auto"
    debug: bool = False
    fast_dev_run: int | bool = False

    def __post_init__(self) -> None:
        if self.run_dir is not None:
            self.run_dir = local_path("fit", "run_dir", self.run_dir)
        if self.epochs is None and self.steps is None:
            raise ValueError("nothing says how long to train: pass epochs= or steps=.")
        self.epochs, self.steps = _count("epochs", self.epochs), _count("steps", self.steps)
        self.steps_per_epoch = _count("steps_per_epoch", self.steps_per_epoch)
        self.batch_size = _count("batch_size", self.batch_size)
        self.validation_batch_size = _count("validation_batch_size", self.validation_batch_size)
        self.validation_steps = _count("validation_steps", self.validation_steps)
        self.cadence = EvalSchedule(_frequency(self.validation_freq), _count("eval_every", self.eval_every))
        measured = self.steps_per_execution == "auto"
        self.fixed_steps = None if measured else _count("steps_per_execution", self.steps_per_execution)
        check_choice("fit", "on_save_error", self.on_save_error, ("raise", "warn"))
        check_choice("fit", "resident", self.resident, ("auto", True, False))
        self.resident = self.resident if self.resident == "auto" else bool(self.resident)
        check_choice("fit", "remainder", self.remainder, ("train", "drop"))
        check_choice("fit", "verbose", self.verbose, ("auto", 0, 1, 2))
        self.seed = check_int("fit", "seed", self.seed)
        if self.fast_dev_run:
            batches = check_int("fit", "fast_dev_run", int(self.fast_dev_run), least=1)
            self.epochs, self.steps, self.validation_steps = 1, batches, batches
            self.cadence = EvalSchedule(1, None)

    @property
    def order(self) -> dict[str, Any]:
        """What the order of the data depends on, as JSON."""
        return {
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }


def _count(name: str, value: Any) -> int | None:
    """A count as the device holds it: one that is larger is for ever."""
    return None if value is None else min(check_int("fit", name, value, least=1), UNBOUNDED)


def _frequency(freq: Any) -> int | tuple[int, ...]:
    if isinstance(freq, Iterable) and not isinstance(freq, str):
        return tuple(check_int("fit", "each epoch of validation_freq", epoch, least=1) for epoch in freq)
    return check_int("fit", "validation_freq", freq, least=1)
