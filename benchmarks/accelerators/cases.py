"""The cases: what is trained with which callbacks, on which devices, and the loop by hand that it is compared with."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import hand
import library
import numpy as np
from models import MODELS, Model, adam
from targets import TARGETS, Target

import jaxcb as jc

BLOCKS = (0, 8, 32)  # besides the default; 0 is the loop that ends at any step


@dataclass(frozen=True)
class Case:
    """A run to compile.

    Attributes:
        target: the devices.
        model: name of the model.
        name: what is special about the run.
        by_hand: makes the loop by hand.
        arguments: returns arguments of `jc.fit` or `jc.sweep`, given a directory and the model.
        execution: further arguments of `jc.Execution`.
    """

    target: Target
    model: str
    name: str
    by_hand: Callable[[Model, Target], Any]
    arguments: Callable[[str, Model], dict[str, Any]] = lambda directory, model: {}
    execution: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Identifies the case in the results."""
        return f"{self.target.name} | {self.model} | {self.name}"

    def trace_by_hand(self, model: Model) -> Any:
        """Traces the loop by hand."""
        return self.by_hand(model, self.target)

    def trace(self, model: Model) -> Any:
        """Traces the chunk of steps that jaxcb compiles."""
        target = self.target
        is_stream, is_sweep = self.by_hand is hand.stream, self.by_hand is hand.sweep
        execution = jc.Execution(
            steps_per_execution=hand.EVERY if is_stream else None,
            resident=None if is_stream or is_sweep else True,
            mesh=target.mesh,
            sharding=target.sharding,
            **self.execution,
        )
        with tempfile.TemporaryDirectory() as directory:
            arguments: dict[str, Any] = {
                "optimizer": adam, "epochs": 3, "batch_size": model.batch_size, "verbose": 0, "execution": execution,
                "validation_data": model.validation, "validation_batch_size": model.batch_size,
            }  # fmt: skip
            if is_stream:
                rows = np.arange(model.batch_size)
                batches = [tuple(x[rows] for x in model.train)] * model.steps
                fit, data = jc.fit, batches
                arguments |= {"batch_size": None}
            else:
                fit, data = (jc.sweep if is_sweep else jc.fit), model.train
            if fit is jc.fit:
                arguments |= {"learning_rate": 1e-3}
            arguments |= self.arguments(directory, model)
            return library.traced(lambda: fit(model.fit(), model.fit_loss, data, **arguments), target)


def _four(directory: str, model: Model) -> dict[str, Any]:
    """Early stopping, plateau, CSV and TensorBoard's scalars."""
    callbacks = [
        jc.EarlyStopping(patience=5),
        jc.ReduceLROnPlateau(patience=3),
        jc.CSVLogger(f"{directory}/log.csv"),
        jc.TensorBoard(f"{directory}/events"),
    ]
    return {"callbacks": callbacks}


def _best(directory: str, model: Model) -> dict[str, Any]:
    return {"callbacks": [jc.EarlyStopping(patience=5, restore_best_weights=True)]}


def _probes(directory: str, model: Model) -> dict[str, Any]:
    return {"metrics": {"grad_norm": jc.probes.grad_norm(every=hand.EVERY)}}


def _histograms(directory: str, model: Model) -> dict[str, Any]:
    board = jc.TensorBoard(f"{directory}/events", histogram_freq=1, histograms=("params", "grads"))
    return {"callbacks": [board]}


def _remainder(directory: str, model: Model) -> dict[str, Any]:
    """Batches that do not divide the rows, so that the last one of an epoch is smaller."""
    return {"batch_size": model.batch_size - 8}


def _sweep(directory: str, model: Model) -> dict[str, Any]:
    return {"over": {"optimizer.learning_rate": list(np.geomspace(1e-4, 1e-2, hand.MEMBERS))}, "strategy": "vmap"}


def cases() -> Iterator[Case]:
    """Yields all cases: every kind for the MLP on one device; the common ones for the others.

    Wide models show what memory costs where it matters: beside weights of a few megabytes, XLA's choices of an order
    differ by more than all arrays of a run.
    """
    for target in TARGETS:
        for model in MODELS:
            is_wide = "width" in model
            if target.chips > 1 and is_wide:
                continue
            if target.chips > 1 and model == "cnn" and target.sharding == "fsdp":
                continue  # its parameters are too small to be worth it
            yield Case(target, model, "no callbacks", hand.plain)
            yield Case(target, model, "four callbacks", hand.plain, _four)
            if target.chips > 1:
                continue
            yield Case(target, model, "best weights", hand.best, _best)
            if model == "mlp":
                yield Case(target, model, "smaller last batch", hand.plain, _remainder)
                yield Case(target, model, "probe every 100 steps", hand.probed, _probes)
                yield Case(target, model, "histograms", hand.histograms, _histograms)
                yield Case(target, model, f"sweep of {hand.MEMBERS}", hand.sweep, _sweep)
                yield Case(target, model, "stream", hand.stream)
            if target.platform == "cuda" and not is_wide:
                for block in BLOCKS:
                    name = f"four callbacks, blocks of {block}" if block else "four callbacks, no blocks"
                    yield Case(target, model, name, hand.plain, _four, {"block": block})
