"""The configuration of a run: `Execution`, `Checkpointing`, and `RunConfig`, which has all of it."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxcb._src.checkpointing.bucket_run import RunPlace
from jaxcb._src.core.chain import Chain
from jaxcb._src.data.inputs import DataConfig, ValidationConfig
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.loop.compiled.position import EvalSchedule
from jaxcb._src.training.probes import Evaluator, HostMetric, Probe
from jaxcb._src.utils.address import Address
from jaxcb._src.utils.errors import check_bool, check_choice, check_int, check_seed
from jaxcb._src.utils.local_path import local_path_or_address, path_text


def settings_of(arguments: Mapping[str, Any], callbacks: Chain, more: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that tables of runs show: name -> number, text or boolean.

    Args:
        arguments: arguments of the run; those that are None are left out.
        callbacks: the run's callbacks; the numbers that a sweep can change are shown, such as
            `EarlyStopping.patience`.
        more: further settings.
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
    """Returns a number as a float, and a function's name; None for anything else.

    A function that another function returned has the name of that one, such as `cosine_decay_schedule`.
    """
    if isinstance(value, Callable):
        name = getattr(value, "__qualname__", None) or getattr(getattr(value, "func", None), "__qualname__", None)
        return (name or type(value).__qualname__).split(".<locals>")[0]
    is_number = isinstance(value, int | float) or getattr(value, "shape", None) == ()
    return float(value) if is_number else None


def _count(owner: str, name: str, value: Any) -> int | None:
    """Checks a count, and limits it to int32, in which the device counts: a larger one means no limit."""
    return None if value is None else min(check_int(owner, name, value, least=1, concrete=True), UNBOUNDED)


def _frequency(owner: str, freq: Any) -> int | tuple[int, ...]:
    if isinstance(freq, Iterable) and not isinstance(freq, str | bytes | Mapping) and getattr(freq, "shape", 1) != ():
        epochs = tuple(check_int(owner, "each epoch of validation_freq", n, least=1, concrete=True) for n in freq)
        if not epochs:
            raise ValueError(f"{owner}: validation_freq lists no epoch. Leave validation_data out to validate never.")
        return epochs
    return check_int(owner, "validation_freq", freq, least=1, concrete=True)


MOST_STEPS_OF_A_BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is executed: the choices of `fit`, `Loop.run` and `sweep` that are rarely needed.

    Args:
        executor: "looped" runs many steps in one call of a compiled loop; "stepped" calls a compiled step for each
            batch. None selects the one that is faster for the step and the backend.
        steps_per_execution: steps of one call of the compiled loop. None measures.
        block: steps of the looped executor that run without any check by the host, at most 32. A step that must not run
            is masked: it takes its time and changes nothing. A GPU waits for the host after each block instead of
            after each step; elsewhere blocks save nothing. If a callback needs the host at steps, the stepped executor
            runs. 0 means none. None selects blocks on GPUs, of a size that follows from the lengths of epochs,
            validations and probes.
        resident: whether arrays are kept on the devices, whole on each. If False, the host gathers each batch; the
            batches are the same. None keeps them there if they take at most half of the free memory.
        drop_remainder: whether a last batch of fewer rows is left out.
        eval_every: steps between two validations, in place of `validation_freq`; there is one at the end, too.
        mesh: the devices to train on, such as `jax.make_mesh((jax.device_count(),), ("data",))`. `batch_size` is that
            of all of them together. None uses the default device; a sweep with `strategy="shard"` uses all devices.
        sharding: how the train state is split over the mesh: "fsdp" by size; "replicated"; or a mapping of path
            patterns to `PartitionSpec`, such as `{"**/kernel": P(None, "model")}`. None follows the partition metadata
            of the model, if it has any.
        copy: whether `fit` leaves an NNX module as it is and returns a trained copy.
        debug: whether to run step by step without compilation, so that pdb and print work, and to stop at the first
            NaN with its step and leaf. Each function is first called once with abstract arrays.
        fast_dev_run: number of batches to try everything on, without leaving files; True means 1, and 0 is a real
            run.
        overfit_batches: number of batches to train on, the first ones of the data in its own order, in each epoch: a
            model that can learn brings their loss near 0. Validation data stays as it is. None trains on all.

    Raises:
        TypeError: for a value of another type.
        ValueError: for a value out of range.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> result = jc.fit(jnp.ones(()), lambda w, x: jnp.mean(w * x), jnp.ones(7), optimizer=optax.sgd(0.1),
        ...                 epochs=1, batch_size=2, execution=jc.Execution(drop_remainder=True), verbose=0)
        >>> int(result.state.step)
        3
    """

    executor: Literal["looped", "stepped"] | None = None
    steps_per_execution: int | None = None
    block: int | None = None
    resident: bool | None = None
    drop_remainder: bool = False
    eval_every: int | None = None
    mesh: Mesh | None = None
    sharding: Mapping[str, PartitionSpec] | Literal["fsdp", "replicated"] | None = None
    copy: bool = False
    debug: bool = False
    fast_dev_run: int = 0
    overfit_batches: int | None = None

    def __post_init__(self) -> None:
        check_choice("Execution", "executor", self.executor, (None, "looped", "stepped"))
        for name in ("steps_per_execution", "eval_every", "overfit_batches"):
            object.__setattr__(self, name, _count("Execution", name, getattr(self, name)))
        for name in ("drop_remainder", "copy", "debug"):
            object.__setattr__(self, name, check_bool("Execution", name, getattr(self, name)))
        if self.resident is not None:
            object.__setattr__(self, "resident", check_bool("Execution", "resident", self.resident))
        if self.mesh is not None and not isinstance(self.mesh, Mesh):
            raise TypeError(
                "Execution: mesh must be a jax.sharding.Mesh, such as jax.make_mesh((jax.device_count(),), ('data',)), "
                f"got a {type(self.mesh).__name__}."
            )
        if not isinstance(self.sharding, Mapping) and self.sharding not in (None, "fsdp", "replicated"):
            raise ValueError(
                "Execution: sharding must be 'fsdp', 'replicated', a mapping of path patterns to "
                f"jax.sharding.PartitionSpec, or None, got {self.sharding!r}."
            )
        if self.block is not None:
            object.__setattr__(self, "block", check_int("Execution", "block", self.block))
            if self.block > MOST_STEPS_OF_A_BLOCK:
                raise ValueError(f"Execution: block must be at most {MOST_STEPS_OF_A_BLOCK}, got {self.block}.")
            if self.block and (self.debug or self.executor == "stepped"):
                other = "debug=True" if self.debug else "executor='stepped'"
                raise ValueError(
                    f"Execution: block={self.block} needs the looped executor, got {other}. Leave one out."
                )
        batches = int(self.fast_dev_run) if isinstance(self.fast_dev_run, bool) else self.fast_dev_run
        object.__setattr__(self, "fast_dev_run", check_int("Execution", "fast_dev_run", batches))


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """How a run is saved.

    Args:
        overwrite: whether a run that is already in `run_dir` is replaced.
        on_error: what happens if a disk does not take a checkpoint, an export, a log or an event file. "raise" ends the
            run. "warn" warns once of each file and continues: the checkpoint before is kept, rows and events wait in
            memory, and later writes try again.
        local_dir: the local folder of a run whose `run_dir` is a bucket. It needs room for what the run keeps, and one
            checkpoint more. None for a folder of its own in the user's cache.

    Raises:
        TypeError: for a value of another type.
        ValueError: for another `on_error`, or a path that is not one.

    Example:
        >>> import jaxcb as jc
        >>> jc.Checkpointing(overwrite=True)
        Checkpointing(overwrite=True, on_error='raise', local_dir=None)
    """

    overwrite: bool = False
    on_error: Literal["raise", "warn"] = "raise"
    local_dir: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "overwrite", check_bool("Checkpointing", "overwrite", self.overwrite))
        check_choice("Checkpointing", "on_error", self.on_error, ("raise", "warn"))
        if self.local_dir is not None:
            path_text("Checkpointing", "local_dir", self.local_dir, buckets=False)


class FurtherMetrics(NamedTuple):
    """The `metrics=` of a run, by kind.

    Attributes:
        probes: name -> probe.
        evaluators: names of the results -> function of the model.
        host_metrics: name -> function without arguments.
    """

    probes: dict[str, Probe]
    evaluators: dict[tuple[str, ...], Callable[[Any], Any]]
    host_metrics: dict[str, Callable[[], Any]]

    def describe(self) -> dict[str, Any]:
        """Returns what a run is compared by, as JSON: name -> steps between the values of a probe, or the kind."""
        evaluated = [name for names in self.evaluators for name in names]
        kinds = dict.fromkeys(evaluated, "evaluator") | dict.fromkeys(self.host_metrics, "host_metric")
        return dict(sorted({**{name: probe.every for name, probe in self.probes.items()}, **kinds}.items()))


def split_metrics(owner: str, metrics: Mapping[Any, Any] | None) -> FurtherMetrics:
    """Sorts the `metrics=` of a run by kind.

    Raises:
        TypeError: for a value of no known kind, and for a name that is not a string.
        ValueError: for a name that is used twice.
    """
    found = FurtherMetrics({}, {}, {})
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(f"{owner}: metrics must be a mapping of names, got a {type(metrics).__name__}.")
    known: set[str] = set()
    for key, value in (metrics or {}).items():
        if not isinstance(value, Probe | Evaluator | HostMetric):
            raise TypeError(
                f"{owner}: metrics[{key!r}] is a {type(value).__name__}. Make it with jc.probe(fn, every=...) for a "
                "function of the training step, with jc.probes.evaluator(fn) for a function of the model, or with "
                "jc.probes.host_metric(fn) for a function without arguments."
            )
        names: tuple[Any, ...] = key if isinstance(key, tuple) and isinstance(value, Evaluator) else (key,)
        for name in names:
            if not isinstance(name, str) or not name:
                raise TypeError(f"{owner}: a name in metrics must be a string that is not empty, got {name!r}.")
            if name in known:
                raise ValueError(f"{owner}: metrics has more than one result of the name {name!r}.")
            known.add(name)
        if isinstance(value, Probe):
            found.probes[names[0]] = value
        elif isinstance(value, Evaluator):
            found.evaluators[names] = value.fn
        else:
            found.host_metrics[names[0]] = value.fn
    return found


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The arguments of `fit`, `Loop.run` or `sweep` about data, duration, files and execution: checked, and by part.

    It is made once by `RunConfig.of`. Each constructor takes the part that it needs.

    Attributes:
        owner: the function that was called, which errors name.
        data: how training data becomes batches.
        validation: the validation data.
        cadence: when to validate.
        metrics: further metrics, by kind.
        run_dir: directory of the run's files, or its address in a bucket; None for a run without files.
        resume: whether a run in `run_dir` is resumed.
        checkpointing: how the run is saved.
        execution: how the run is executed.
        verbose: how much is printed.
        place: the opened bucket, if `run_dir` is in the local folder of one.
    """

    owner: str
    data: DataConfig
    validation: ValidationConfig
    cadence: EvalSchedule
    metrics: FurtherMetrics
    run_dir: Path | Address | None
    resume: bool
    checkpointing: Checkpointing
    execution: Execution
    verbose: Literal[0, 1, 2] | None
    place: RunPlace | None = None

    @classmethod
    def of(  # noqa: PLR0913
        cls,
        owner: str,
        *,
        epochs: int | None,
        steps: int | None,
        steps_per_epoch: int | None,
        batch_size: int | None,
        shuffle: bool,
        validation_data: Any,
        validation_freq: int | Sequence[int],
        validation_steps: int | None,
        validation_batch_size: int | None,
        metrics: Mapping[Any, Any] | None,
        seed: int,
        run_dir: str | Path | None,
        resume: bool,
        verbose: Literal[0, 1, 2] | None,
        execution: Execution,
        checkpointing: Checkpointing,
        unsupported: tuple[str, ...] = (),
    ) -> "RunConfig":
        """Checks the arguments, which `fit` describes.

        Args:
            owner: the function that was called.
            epochs: and the other arguments: as in `fit`.
            steps: see `fit`.
            steps_per_epoch: see `fit`.
            batch_size: see `fit`.
            shuffle: see `fit`.
            validation_data: see `fit`.
            validation_freq: see `fit`.
            validation_steps: see `fit`.
            validation_batch_size: see `fit`.
            metrics: see `fit`.
            seed: see `fit`.
            run_dir: see `fit`.
            resume: see `fit`.
            verbose: see `fit`.
            execution: see `fit`.
            checkpointing: see `fit`.
            unsupported: fields of `execution` that the owner does not take.

        Raises:
            TypeError: for arguments of another type.
            ValueError: for arguments out of range.
        """
        directory = None if run_dir is None else local_path_or_address(owner, "run_dir", run_dir)
        if epochs is None and steps is None:
            raise ValueError(f"{owner}: epochs and steps are both None; pass at least one of them.")
        check_choice(owner, "verbose", verbose, (None, 0, 1, 2))
        if isinstance(resume, str):
            raise TypeError(
                f"{owner}: resume must be True or False, got {resume!r}. resume=True continues the run in run_dir."
            )
        _check_execution(owner, execution, unsupported)
        if not isinstance(checkpointing, Checkpointing):
            raise TypeError(f"{owner}: checkpointing must be a jc.Checkpointing, got a {type(checkpointing).__name__}.")
        data = DataConfig(
            epochs=_count(owner, "epochs", epochs),
            steps=_count(owner, "steps", steps),
            steps_per_epoch=_count(owner, "steps_per_epoch", steps_per_epoch),
            batch_size=_count(owner, "batch_size", batch_size),
            shuffle=check_bool(owner, "shuffle", shuffle),
            seed=check_seed(owner, seed),
            drop_remainder=execution.drop_remainder,
            resident=execution.resident,
            steps_per_execution=execution.steps_per_execution,
            overfit_batches=execution.overfit_batches,
        )
        validation = ValidationConfig(
            data=validation_data,
            batch_size=_count(owner, "validation_batch_size", validation_batch_size) or data.batch_size,
            steps=_count(owner, "validation_steps", validation_steps),
            resident=execution.resident,
        )
        cadence = EvalSchedule(_frequency(owner, validation_freq), execution.eval_every)
        if execution.fast_dev_run:
            data = replace(data, epochs=1, steps=execution.fast_dev_run)
            validation, cadence = replace(validation, steps=execution.fast_dev_run), EvalSchedule(1, None)
        return cls(
            owner=owner,
            data=data,
            validation=validation,
            cadence=cadence,
            metrics=split_metrics(owner, metrics),
            run_dir=directory,
            resume=check_bool(owner, "resume", resume),
            checkpointing=checkpointing,
            execution=execution,
            verbose=verbose,
        )

    @property
    def seed(self) -> int:
        """The seed of the run."""
        assert isinstance(self.data.seed, int)
        return self.data.seed

    @property
    def is_trial(self) -> bool:
        """Whether nothing may remain after the run."""
        return bool(self.execution.fast_dev_run)


def _check_execution(owner: str, execution: Execution, unsupported: Sequence[str]) -> None:
    if not isinstance(execution, Execution):
        raise TypeError(f"{owner}: execution must be a jc.Execution, got a {type(execution).__name__}.")
    for name in unsupported:
        if getattr(execution, name) != getattr(Execution(), name):
            raise ValueError(f"{owner} does not take Execution({name}={getattr(execution, name)!r}).")
