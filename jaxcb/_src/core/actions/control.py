"""Control actions: they change the run on the device."""

import dataclasses
from typing import Any

from jaxcb._src.core.actions.base import ControlAction
from jaxcb._src.utils.pytree import static


class Stop(ControlAction):
    """Stops the run. The current epoch is validated and closed first, as in Keras.

    Attributes:
        when: whether to stop, bool ().
        reason: a template that the host fills with `values` and the metrics of the hook call,
            such as `"val_loss reached {val_loss:.3f}"`.
        values: further values of the template, name -> scalar.
    """

    when: Any = True
    reason: str = static(default="stop requested")
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    template = "reason"


class ScaleLearningRate(ControlAction):
    """Multiplies the factor that callbacks apply to the learning rate.

    Attributes:
        factor: the multiplier, float32 ().
        floor: lower bound of the effective learning rate, float32 (); None for no bound. A bound needs a learning
            rate that the run can read (`adjustable_lr`).
        of: name of the rate, if there are several; None for all of them.
    """

    factor: Any
    floor: Any = None
    of: str | None = static(default=None, kw_only=True)


class SetLearningRate(ControlAction):
    """Replaces the base learning rate until it is set again; the callbacks' factor still multiplies it.

    Attributes:
        value: the rate, float32 ().
        of: name of the rate, if there are several; None for all of them.
    """

    value: Any
    of: str | None = static(default=None, kw_only=True)


class SetAccumulation(ControlAction):
    """Sets the steps of an update, int32 (), from the next update on; `GradientAccumulation({...})` has to be there."""

    steps: Any


class SetControl(ControlAction):
    """Sets the control `name` of the run to `value`, float32 ()."""

    name: str = static()
    value: Any


class WeightAction(ControlAction):
    """Base class of actions on the named weights `slot`, which the owner declares in `slots()`."""

    slot: str = static(default="best")

    @property
    def key(self) -> str:
        """The key of the named weights in the train state: `owner/slot`."""
        return f"{self.owner}/{self.slot}" if self.owner else self.slot


class Snapshot(WeightAction):
    """Copies the current weights into the slot."""


class Restore(WeightAction):
    """Copies the slot into the current weights, unless the slot was never filled."""


class Average(WeightAction):
    """Moves the slot towards the current weights: `decay * slot + (1 - decay) * current`.

    The first one copies the current weights.
    """

    decay: Any = 0.999


class Swap(WeightAction):
    """Exchanges the slot and the current weights, unless the slot was never filled."""


class ScaleHyperparameter(ControlAction):
    """Multiplies a hyperparameter that is kept in the optimizer's state, such as one that a sweep varies.

    Attributes:
        factor: the multiplier, float32 ().
        name: the hyperparameter, such as "weight_decay".
    """

    name: str = static()
    factor: Any


class Exploit(ControlAction):
    """Copies another member of a population (weights, model state, optimizer state, controls) before other actions.

    Attributes:
        source: the row of the member to copy, int32 (members,). `when` has the same axis.
    """

    source: Any


class SkipUpdate(ControlAction):
    """Drops this update (`on_before_update` only): step and rng advance, nothing else changes."""


class ScaleUpdates(ControlAction):
    """Multiplies the updates of this step (`on_before_update` only).

    Attributes:
        factor: the multiplier, float32 (); 0 freezes, which also keeps the statistics of the model below the paths.
        where: pattern of parameter paths, in which `**` matches any number of parts: `"backbone/**"`.
    """

    factor: Any
    where: str = static(default="**")
