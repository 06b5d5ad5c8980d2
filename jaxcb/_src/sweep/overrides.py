"""`with_overrides`: changes a run's configuration by the values of a sweep's point."""

import dataclasses
import difflib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import optax

from jaxcb._src.core.chain import Chain
from jaxcb._src.sweep.space import Point
from jaxcb._src.training.learning_rate import check_hyperparameters
from jaxcb._src.training.optimizer_groups import named_groups, rates_of_groups
from jaxcb._src.training.training_config import TrainingConfig
from jaxcb._src.utils.errors import check_int, check_number, did_you_mean

_PLACES = ("seed", "learning_rate", "optimizer.NAME", "controls.NAME", "callbacks.NAME.FIELD", "model.NAME")
_HEADS = ("optimizer", "controls", "callbacks", "model")
_RATE = "learning_rate"  # `fit`'s own name of `optimizer.learning_rate`
# arguments of `fit` whose values decide the program or the data, so that members cannot differ in them
_SHARED = (
    "epochs", "steps", "steps_per_epoch", "batch_size", "shuffle", "validation_data", "validation_split",
    "validation_freq", "validation_steps", "validation_batch_size", "sample_weight", "class_weight", "metrics",
    "run_dir", "resume", "verbose", "execution", "checkpointing", "loss_fn", "train_data",
)  # fmt: skip


def with_overrides(configuration: TrainingConfig, point: Point) -> TrainingConfig:
    """Returns the configuration with a point's values, each validated by its new owner.

    Raises:
        ValueError: for an unknown path, or a value out of range.
    """
    new = configuration
    if _RATE in point and f"optimizer.{_RATE}" in point:
        raise ValueError(f"over: {_RATE!r} and 'optimizer.{_RATE}' are two names of one number; leave one of them out.")
    for path, value in point.items():
        try:
            new = _with(new, path, value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"over: {path!r} = {value!r}: {error}") from None
    return new


def _with(configuration: TrainingConfig, path: str, value: Any) -> TrainingConfig:
    head, _, rest = path.partition(".")
    if path == "seed":
        return dataclasses.replace(configuration, seed=check_int("sweep", "seed", value))
    if path == _RATE:
        return _with_optimizer(configuration, _RATE, value)
    if head == "optimizer" and rest:
        return _with_optimizer(configuration, rest, value)
    if head == "controls" and rest:
        if rest not in configuration.controls:
            known = ", ".join(sorted(configuration.controls)) or "none"
            raise ValueError(
                f"there is no such control; controls: {known}.{did_you_mean(rest, configuration.controls)} "
                f"Declare it with controls={{{rest!r}: 0.0}}."
            )
        return dataclasses.replace(
            configuration, controls={**configuration.controls, rest: check_number("sweep", rest, value)}
        )
    if head == "callbacks" and "." in rest:
        name, _, field = rest.rpartition(".")
        return dataclasses.replace(configuration, callbacks=_with_field(configuration.callbacks, name, field, value))
    if head == "model" and rest:
        return dataclasses.replace(configuration, model={**configuration.model, rest: value})
    if path in _SHARED:
        raise ValueError(f"all members share {path!r}, on which the program or the data depend. Run a sweep for each.")
    if head in dict(configuration.callbacks.items()) and rest:
        raise ValueError(f"expected a path such as {', '.join(_PLACES)}. Did you mean 'callbacks.{path}'?")
    raise ValueError(f"expected a path such as {', '.join(_PLACES)}.{_near(configuration, path)}")


def _near(configuration: TrainingConfig, path: str) -> str:
    """Returns the path that may have been meant: of the arguments of `fit`, or of what is in them."""
    callbacks = (
        f"callbacks.{name}.{f.name}"
        for name, callback in configuration.callbacks.items()
        for f in dataclasses.fields(callback)
        if not f.metadata.get("static")
    )
    numbers = inspect.signature(configuration.optimizer).parameters if callable(configuration.optimizer) else ()
    inside = [
        *callbacks,
        *(f"optimizer.{n}" for n in numbers),
        *(f"controls.{name}" for name in configuration.controls),
    ]
    ends = {full.rpartition(".")[2]: full for full in reversed(inside)} | {"seed": "seed", _RATE: _RATE}
    for end in difflib.get_close_matches(path, ends, n=1):  # `patience` for `callbacks.EarlyStopping.patience`
        return f" Did you mean {ends[end]!r}?"
    return did_you_mean(path, ("seed", _RATE, *inside)) or did_you_mean(path.partition(".")[0], ("seed", *_HEADS))


def _with_optimizer(configuration: TrainingConfig, name: str, value: Any) -> TrainingConfig:
    if isinstance(configuration.optimizer, Mapping):
        return _with_group(configuration, name, value)
    if isinstance(configuration.optimizer, optax.GradientTransformation):
        raise ValueError(
            "the optimizer is ready-made, so its numbers cannot be changed. Pass the factory: "
            "optimizer=optax.adamw, learning_rate=1e-3."
        )
    value = check_number("sweep", name, value, least=0.0 if name == _RATE else -math.inf)
    if name != _RATE:
        check_hyperparameters(configuration.optimizer, [name])
        return dataclasses.replace(configuration, hyperparameters={**configuration.hyperparameters, name: value})
    if callable(configuration.learning_rate):
        raise ValueError(
            "the learning rate is a schedule, not a number. Make a number of the schedule an argument of the "
            "optimizer: optimizer=lambda learning_rate, scale: optax.chain(optax.adam(learning_rate), "
            "optax.scale(scale)), and sweep optimizer.scale."
        )
    return dataclasses.replace(configuration, learning_rate=value)


def _with_group(configuration: TrainingConfig, name: str, value: Any) -> TrainingConfig:
    """Returns the configuration with the learning rate of one of several optimizers, or of all."""
    rates = rates_of_groups(configuration.optimizer, configuration.learning_rate, "sweep")
    group, _, number = name.rpartition(".")
    if number != "learning_rate" or (group and group not in rates):
        known = [f"{group}.learning_rate" for group in rates]
        listed = ", ".join(f"optimizer.{path}" for path in known)
        raise ValueError(f"of several optimizers the learning rates can be swept: {listed}.{did_you_mean(name, known)}")
    value = check_number("sweep", name, value, least=0.0)
    names = named_groups(configuration.optimizer, "sweep")
    for each in [group] if group else rates:
        if isinstance(configuration.optimizer[names[each]], optax.GradientTransformation) or callable(rates[each]):
            raise ValueError(f"the optimizer of {each!r} has a learning rate of its own, which cannot be swept.")
    new = {each: value if group in ("", each) else rate for each, rate in rates.items()}
    return dataclasses.replace(configuration, learning_rate={n: rate for n, rate in new.items() if rate is not None})


def _with_field(callbacks: Chain, name: str, field: str, value: Any) -> Chain:
    """Returns the chain with one number of one callback changed; the callback is made again, to validate it."""
    by_name = dict(callbacks.items())
    if name not in by_name:
        raise ValueError(
            f"there is no such callback; callbacks: {', '.join(by_name) or 'none'}.{did_you_mean(name, by_name)}"
        )
    callback: Any = by_name[name]
    fields = {f.name: not f.metadata.get("static") for f in dataclasses.fields(callback) if f.name != "name"}
    if field not in fields:
        raise ValueError(f"{name} has no {field!r}; it has {', '.join(fields)}.{did_you_mean(field, fields)}")
    if not fields[field]:
        numbers = ", ".join(by_name for by_name, is_number in fields.items() if is_number) or "none"
        raise ValueError(
            f"it is {getattr(callback, field)!r} in {name}, a part of the program and not a number that can be "
            f"swept. Numbers that can: {numbers}."
        )
    new = dataclasses.replace(callback, **{field: value})
    return callbacks.replace(callbacks=tuple(new if n == name else c for n, c in callbacks.items()))
