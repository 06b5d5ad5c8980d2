"""Log actions for TensorBoard."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxcb._actions._base import LogAction
from jaxcb._struct import static


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
