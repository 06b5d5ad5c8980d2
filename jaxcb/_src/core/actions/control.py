"""Control actions: what changes the run on the device."""

import dataclasses
from typing import Any

from jaxcb._src.core.actions.base import ControlAction
from jaxcb._src.utils.pytree import static


class Stop(ControlAction):
    """Stops the run: the epoch is validated and closed first, as in Keras.

    Attributes:
        when: whether to stop, bool ().
        reason: a template that the host fills with `values` and the metrics of the moment,
            such as `"val_loss reached {val_loss:.3f}"`.
        values: what the template needs beyond metrics, name -> scalar.
    """

    when: Any = True
    reason: str = static(default="stop requested")
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    template = "reason"


class ScaleLearningRate(ControlAction):
    """Multiplies the callbacks' factor on the learning rate.

    Attributes:
        factor: the multiplier, float32 ().
        floor: the effective rate is not scaled below it, float32 (); None for no floor. One needs the
            exact form of the rate (`adjustable_lr`).
    """

    factor: Any
    floor: Any = None


class SetLearningRate(ControlAction):
    """Replaces the base rate until the next set; the callbacks' factor still multiplies it."""

    value: Any


class SetControl(ControlAction):
    """Sets the control `name` of the run to `value`, float32 ()."""

    name: str = static()
    value: Any


class WeightAction(ControlAction):
    """An action on the named weights `slot`, which the owner declares in `slots()`."""

    slot: str = static(default="best")

    @property
    def key(self) -> str:
        """Where the run keeps them: `owner/slot`."""
        return f"{self.owner}/{self.slot}" if self.owner else self.slot


class Snapshot(WeightAction):
    """Copies the current weights into the slot."""


class Restore(WeightAction):
    """Copies the slot into the current weights, where it was ever filled."""


class Average(WeightAction):
    """Moves the slot towards the current weights: `decay * slot + (1 - decay) * current`.

    The first one copies.
    """

    decay: Any = 0.999


class Swap(WeightAction):
    """Exchanges the slot and the current weights, where it was ever filled."""


class ScaleHyperparameter(ControlAction):
    """Multiplies a number of the optimizer that lives in its state, as those do that a sweep gives to its members.

    Attributes:
        factor: the multiplier, float32 ().
        name: of the number, such as "weight_decay".
    """

    name: str = static()
    factor: Any


class Exploit(ControlAction):
    """Copies another member of a population: weights, model state, optimizer state and controls. Applied before others.

    Attributes:
        source: the row of the member to copy, int32 (members,); so `when`.
    """

    source: Any


class SkipUpdate(ControlAction):
    """Drops this update (`on_before_update` only): step and rng advance, nothing else."""


class ScaleUpdates(ControlAction):
    """Multiplies this step's updates (`on_before_update` only).

    Attributes:
        factor: the multiplier, float32 (); 0 freezes.
        where: pattern of parameter paths, `**` for any number of parts: `"backbone/**"`.
    """

    factor: Any
    where: str = static(default="**")
