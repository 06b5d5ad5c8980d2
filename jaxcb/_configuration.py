"""`Configuration`: what makes a run the one it is, and how a point changes it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from jaxcb._chain import Chain
from jaxcb._check import number, whole
from jaxcb._errors import did_you_mean
from jaxcb._points import Point
from jaxcb._schedules import adjustable_lr, check_hyperparameters, learning_rates, scaled_updates
from jaxcb._train_state import TrainState
from jaxcb.models._adapter import Adapter

_PLACES = ("seed", "optimizer.NAME", "controls.NAME", "callbacks.NAME.FIELD", "model.NAME")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The configuration of one run, as far as numbers in it can be swept.

    Attributes:
        seed: of its keys and its order of the data.
        optimizer: an optax optimizer, or a factory of one.
        learning_rate: the factory's, a constant or a schedule.
        callbacks: all of them.
        hyperparameters: further numbers of the factory.
        controls: name -> number.
        model: arguments of the function that makes the model, besides the seed.
    """

    seed: int
    optimizer: Any
    learning_rate: float | optax.Schedule | None
    callbacks: Chain
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    controls: Mapping[str, float] = dataclasses.field(default_factory=dict)
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def at(self, point: Point) -> "Configuration":
        """Returns the configuration with a point's values, each checked where it belongs.

        Raises:
            ValueError: for a path that leads nowhere, and for a value that is out of range there.
        """
        new = self
        for path, value in point.items():
            try:
                new = new._with(path, value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"over: {path!r} = {value!r}: {error}") from None
        return new

    def _with(self, path: str, value: Any) -> "Configuration":
        head, _, rest = path.partition(".")
        if path == "seed":
            return dataclasses.replace(self, seed=whole("sweep", "seed", value))
        if head == "optimizer" and rest:
            return self._with_optimizer(rest, value)
        if head == "controls" and rest:
            if rest not in self.controls:
                known = ", ".join(sorted(self.controls)) or "none"
                raise ValueError(
                    f"no control of that name; there are: {known}.{did_you_mean(rest, self.controls)} Declare it with "
                    f"controls={{{rest!r}: 0.0}}."
                )
            return dataclasses.replace(self, controls={**self.controls, rest: number("sweep", rest, value)})
        if head == "callbacks" and "." in rest:
            name, _, field = rest.rpartition(".")
            return dataclasses.replace(self, callbacks=_with_field(self.callbacks, name, field, value))
        if head == "model" and rest:
            return dataclasses.replace(self, model={**self.model, rest: value})
        raise ValueError(f"expected a path such as {', '.join(_PLACES)}.{did_you_mean(head, ('seed', *_HEADS))}")

    def _with_optimizer(self, name: str, value: Any) -> "Configuration":
        if isinstance(self.optimizer, optax.GradientTransformation):
            raise ValueError(
                "the optimizer was handed over ready-made, with its numbers inside. Pass the factory: "
                "optimizer=optax.adamw, learning_rate=1e-3."
            )
        value = number("sweep", name, value)
        if name != "learning_rate":
            check_hyperparameters(self.optimizer, [name])
            return dataclasses.replace(self, hyperparameters={**self.hyperparameters, name: value})
        if callable(self.learning_rate):
            raise ValueError(
                "the learning rate is a schedule, which has no one number. Give the schedule's numbers to the "
                "optimizer: optimizer=lambda learning_rate, scale: optax.chain(optax.adam(learning_rate), "
                "optax.scale(scale)), and sweep optimizer.scale."
            )
        return dataclasses.replace(self, learning_rate=value)

    def without(self, fixed: tuple[str, ...]) -> "Configuration":
        """Returns the configuration with some of the factory's numbers given to it as the Python values they are."""
        if not fixed:
            return self
        own = {name: self.hyperparameters[name] for name in fixed}
        rest = {name: value for name, value in self.hyperparameters.items() if name not in fixed}
        return dataclasses.replace(self, optimizer=functools.partial(self.optimizer, **own), hyperparameters=rest)

    def transformation(self, params: Any) -> optax.GradientTransformation:
        """Makes the optimizer, with a rate that callbacks can change: exactly, or at its final updates.

        Args:
            params: the parameters, or their shapes.
        """
        optimizer = self.optimizer
        if isinstance(optimizer, optax.MultiSteps):
            optimizer = optimizer.gradient_transformation()
        if isinstance(optimizer, optax.GradientTransformation):
            if self.learning_rate is not None:
                raise ValueError(
                    "learning_rate was given together with a ready-made optimizer, which has its own. Pass the "
                    "factory: fit(optimizer=optax.adam, learning_rate=1e-3)."
                )
            has_rate = bool(learning_rates(jax.eval_shape(optimizer.init, params)))
            return optimizer if has_rate else scaled_updates(optimizer)
        if not callable(optimizer):
            raise TypeError(
                f"optimizer must be an optax optimizer or a factory such as optax.adam, got {type(optimizer).__name__}."
            )
        if self.learning_rate is None:
            raise ValueError(
                "optimizer is a factory, so it needs its rate: fit(optimizer=optax.adam, learning_rate=1e-3)."
            )
        return adjustable_lr(optimizer, learning_rate=self.learning_rate, hyperparameters=self.hyperparameters)

    def train_state(self, adapter: Adapter) -> TrainState:
        """Makes the state of a run before its first step; the optimizer's begins with the run."""
        params, model_state, rngs = adapter.split()
        state = TrainState.create(
            params=params,
            model_state=model_state,
            rngs=rngs,
            controls=self.controls,
            seed=self.seed,
            adapter=adapter,
        )
        return state.replace(tx=self.transformation(params))


_HEADS = ("optimizer", "controls", "callbacks", "model")


def _with_field(callbacks: Chain, name: str, field: str, value: Any) -> Chain:
    """The chain with one number of one callback changed, which is made anew so that it is checked."""
    own = dict(callbacks.members())
    if name not in own:
        raise ValueError(f"no callback of that name; there are: {', '.join(own) or 'none'}.{did_you_mean(name, own)}")
    callback: Any = own[name]
    fields = {f.name: not f.metadata.get("static") for f in dataclasses.fields(callback) if f.name != "name"}
    if field not in fields:
        raise ValueError(f"{name} has no {field!r}; it has {', '.join(fields)}.{did_you_mean(field, fields)}")
    if not fields[field]:
        numbers = ", ".join(own for own, is_number in fields.items() if is_number) or "none"
        raise ValueError(
            f"it is {getattr(callback, field)!r} in {name}, which is part of the program and no number that can be "
            f"swept. Those that can: {numbers}."
        )
    new = dataclasses.replace(callback, **{field: value})
    return callbacks.replace(callbacks=tuple(new if n == name else c for n, c in callbacks.members()))
