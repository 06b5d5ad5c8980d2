"""The vocabulary of actions: what a callback can ask for, as data.

Control actions change the run on the device, log actions carry values to the host and never interrupt,
host actions need the live run on the host and end the device's stretch of work when they fire.
"""

import dataclasses
import os
import string
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxcb._struct import Struct, static


class Action(Struct):
    """One thing that should happen where `when` holds.

    Attributes:
        when: whether it happens now, bool (). The structure of an action never changes, only its arrays.
        owner: name of the callback that asked for it; `chain` fills it in.
    """

    when: Any = dataclasses.field(default=True, kw_only=True)
    owner: str = static(default="", kw_only=True)

    template = ""  # a subclass that carries a text says here which field holds it


class ControlAction(Action):
    """An action that changes the run on the device."""


class LogAction(Action):
    """An action that carries values to the host."""


class HostAction(Action):
    """An action that needs the live run on the host."""


# Control


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


# Log


class Row(LogAction):
    """One row of a table in a file.

    Attributes:
        values: name -> scalar.
        fresh: name -> whether it was reported now, bool (); what was not is written as NA.
        path: the file; relative ones lie below `run_dir` where there is one.
        separator: what stands between columns.
        append: whether a file that is there goes on (same header) or is replaced.
    """

    values: dict[str, Any]
    fresh: dict[str, Any]
    path: str = static()
    separator: str = static(default=",")
    append: bool = static(default=False)


class Remember(LogAction):
    """One row of the run's own history (`result.history`, `history.csv`)."""

    values: dict[str, Any]
    fresh: dict[str, Any]


class Progress(LogAction):
    """The figures of a finished epoch for the progress display.

    Attributes:
        verbose: 1 for a live bar on a terminal, 2 for a line an epoch.
    """

    values: dict[str, Any]
    fresh: dict[str, Any]
    verbose: int | str = static(default="auto")


class Print(LogAction):
    """A line on the terminal: `text` is a template filled as `Stop.reason` is."""

    text: str = static(default="")
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    template = "text"


class SeriesAction(LogAction):
    """A log action for TensorBoard: one step of the series `tag` of a run.

    What shares a tag stands in one chart, a line a run; a run is a directory below `logs`.
    """


class Scalars(SeriesAction):
    """Points of curves in TensorBoard, one a name.

    Attributes:
        values: name -> scalar.
        run: the directory below `logs`, such as "train" or "validation".
    """

    values: dict[str, Any]
    run: str = static(default="train")

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if jnp.ndim(value):
                raise ValueError(
                    f"Scalars takes scalars, got {name!r} of shape {jnp.shape(value)}. Reduce it, or use jc.Histogram."
                )


class Histogram(SeriesAction):
    """How values are spread, in TensorBoard: counted on the device, so that only the counts travel.

    They are counted whenever the hook runs, due or not. NaN and infinities are left out.

    Args:
        values: numbers, of any shape; the action does not hold them.

    Attributes:
        tag: its name.
        bins: how many of equal width, from the smallest value to the largest.
        counts: values in each, int32 (bins,).
        limits: of the bins, float32 (bins + 1,).
        low: the smallest value, float32 (); 0 where there is none.
        high: the largest, float32 (); 0 where there is none.
        total: their sum, float32 ().
        squares: the sum of their squares, float32 ().
        run: the directory below `logs`.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> jc.Histogram("weights", jnp.array([0.0, 1.0, 1.5, 4.0]), bins=2).counts.tolist()
        [3, 1]
    """

    tag: str = static()
    values: dataclasses.InitVar[Any]
    bins: int = static(default=64)
    counts: Any = dataclasses.field(init=False)
    limits: Any = dataclasses.field(init=False)
    low: Any = dataclasses.field(init=False)
    high: Any = dataclasses.field(init=False)
    total: Any = dataclasses.field(init=False)
    squares: Any = dataclasses.field(init=False)
    run: str = static(default="train", kw_only=True)

    def __post_init__(self, values: Any) -> None:
        if not isinstance(self.bins, int) or self.bins < 1:
            raise ValueError(f"Histogram {self.tag!r}: bins must be a whole number above 0, got {self.bins!r}.")
        x = jnp.ravel(jnp.asarray(values)).astype(jnp.float32)
        if not x.size:
            raise ValueError(f"Histogram {self.tag!r} got an array of shape {jnp.shape(values)}, expected some values.")
        counted = jnp.isfinite(x)
        low, high = jnp.min(x, where=counted, initial=jnp.inf), jnp.max(x, where=counted, initial=-jnp.inf)
        low, high = (jnp.where(jnp.any(counted), v, 0.0) for v in (low, high))
        # equal values get a bin of width 1 around them, as in numpy
        half = jnp.where(high > low, 0.0, 0.5)
        limits = jnp.linspace(low - half, high + half, self.bins + 1, dtype=jnp.float32)
        index = jnp.clip(jnp.searchsorted(limits, x, side="right") - 1, 0, self.bins - 1)
        x = jnp.where(counted, x, 0.0)
        self._set("counts", jnp.zeros(self.bins, jnp.int32).at[index].add(counted.astype(jnp.int32)))
        self._set("limits", limits)
        self._set("low", low)
        self._set("high", high)
        self._set("total", jnp.sum(x))
        self._set("squares", jnp.sum(x * x))


class Image(SeriesAction):
    """A picture in TensorBoard.

    Attributes:
        tag: its name.
        image: uint8 (height, width) or (height, width, channels) with 1, 3 or 4 channels. Floats in [0, 1] are
            brought to uint8 on the device, what lies outside is clipped.
        run: the directory below `logs`.
    """

    tag: str = static()
    image: Any
    run: str = static(default="train", kw_only=True)

    def __post_init__(self) -> None:
        image = jnp.asarray(self.image)
        if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))) or not image.size:
            raise ValueError(
                f"Image {self.tag!r} has shape {image.shape}, expected (height, width), or (height, width, channels) "
                "with 1, 3 or 4 channels."
            )
        if jnp.issubdtype(image.dtype, jnp.floating):
            bright = jnp.clip(jnp.nan_to_num(image.astype(jnp.float32)), 0.0, 1.0)
            image = jnp.round(bright * 255.0).astype(jnp.uint8)
        if image.dtype != jnp.uint8:
            raise TypeError(f"Image {self.tag!r} is of {image.dtype}, expected uint8, or floats in [0, 1].")
        self._set("image", image)


class Text(SeriesAction):
    """A text in TensorBoard, in Markdown: `text` is a template filled as `Stop.reason` is.

    Attributes:
        tag: its name.
        text: the template.
        values: what the template needs beyond metrics, name -> scalar.
        run: the directory below `logs`.
    """

    tag: str = static()
    text: str = static()
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)
    run: str = static(default="train", kw_only=True)

    template = "text"


# Host


class Call(HostAction):
    """Calls `fn(run)` with the live run.

    Attributes:
        fn: a function of one `Run`.
        values: the metrics of the moment for `run.logs`, name -> array.
    """

    fn: Callable[[Any], Any] = static()
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


class Checkpoint(HostAction):
    """Saves the weights of this moment in a directory of its own, with Orbax; `ocp.load` reads it.

    Attributes:
        path: the directory, a template filled as `Stop.reason` is: `"{epoch:02d}-{val_loss:.2f}"`, epoch from 1.
            Relative ones lie below `run_dir` where there is one. A checkpoint that is there is replaced once the
            new one is complete.
        what: "model" for a dict of `params` and `model_state`, "state" for the whole train state.
        values: what the template needs beyond metrics, name -> scalar.
    """

    path: str = static()
    what: str = static(default="model")
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    template = "path"

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike) or not os.fspath(self.path):
            raise TypeError(f"Checkpoint takes the path of a directory, got {self.path!r}.")
        if self.what not in ("model", "state"):
            raise ValueError(f'Checkpoint: what must be "model" or "state", got {self.what!r}.')
        self._set("path", os.fspath(self.path))


# What is done with actions


def as_actions(actions: Any) -> tuple[Action, ...]:
    """Returns what a hook returned (None, one action, or nested tuples of them) as a flat tuple."""
    if actions is None:
        return ()
    if isinstance(actions, Action):
        return (actions,)
    if isinstance(actions, tuple | list):
        return tuple(a for part in actions for a in as_actions(part))
    raise TypeError(f"expected None, an action or a tuple of actions, got {type(actions).__name__}.")


def stop_requested(actions: Any) -> Array:
    """Whether any `Stop` among `actions` fires, bool (); false where there is none. Jittable."""
    requested = jnp.zeros((), bool)
    for action in as_actions(actions):
        if isinstance(action, Stop):
            requested = requested | action.when
    return requested


def fired(actions: Any) -> tuple[Action, ...]:
    """Returns the actions whose `when` holds, in order, with concrete values.

    Host only. Takes the stack that `lax.scan` makes of them as well (leading axis: time), and then
    gives them moment by moment.

    Example:
        >>> import jaxcb as jc
        >>> [a.reason for a in jc.fired((jc.Stop(True, "now"), jc.Stop(False, "later")))]
        ['now']
    """
    concrete = jax.device_get(as_actions(actions))
    whens = [np.asarray(a.when) for a in concrete]
    lengths = {w.shape for w in whens if w.ndim}
    if not lengths:
        return tuple(a for a, w in zip(concrete, whens, strict=True) if w)
    if len(lengths) > 1 or len(next(iter(lengths))) > 1:
        raise ValueError(f"expected actions of one moment or of one scan, got predicates of shapes {lengths}.")
    out: list[Action] = []
    for moment in range(next(iter(lengths))[0]):
        for action, when in zip(concrete, whens, strict=True):
            if when.ndim and when[moment]:
                out.append(jax.tree.map(lambda x, i=moment: x[i], action))
    return tuple(out)


def template_names(text: str) -> list[str]:
    """Returns the names that a template asks for: `"{val_loss:.2f} at {epoch}"` -> val_loss, epoch."""
    return [name.split(".")[0].split("[")[0] for _, name, _, _ in string.Formatter().parse(text) if name]


def fill(action: Action, *, step: int = 0, epoch: int = 0, known: Iterable[tuple[str, Any]] = ()) -> str:
    """Fills the text of `action` (host only) with its values, `{step}` and the 1-based `{epoch}`."""
    values: dict[str, Any] = {"step": int(step), "epoch": int(epoch) + 1, **dict(known)}
    for name, value in getattr(action, "values", {}).items():
        array = np.asarray(value)
        values[name] = array.item() if array.ndim == 0 else array
    return getattr(action, action.template).format(**values)
