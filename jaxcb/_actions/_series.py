"""Log actions for TensorBoard: what goes into a file of events, a point at a time."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxcb._actions._base import LogAction
from jaxcb._actions._request import RequestAction
from jaxcb._check import one_of
from jaxcb._local_path import path_text
from jaxcb._pictures import as_picture, as_pixels
from jaxcb._struct import static


class TensorBoardAction(LogAction):
    """A log action for TensorBoard.

    Attributes:
        run: the run's directory below `log_dir`, such as "train" or "validation".
        log_dir: the directory of all runs; relative ones lie below `run_dir` where there is one.
    """

    run: str = static(default="train", kw_only=True)
    log_dir: str = static(default="logs", kw_only=True)

    def __post_init__(self) -> None:
        self._set("log_dir", path_text(type(self).__name__, "log_dir", self.log_dir))
        if self.run != "":  # which is `log_dir` itself
            path_text(type(self).__name__, "run", self.run)


class SeriesAction(TensorBoardAction):
    """A log action for TensorBoard: one step of the series `tag` of a run.

    What shares a tag stands in one chart, a line a run.

    Attributes:
        by: what stands on the x axis: "step" for the updates done, "epoch" for the epoch, from 0.
    """

    by: str = static(default="step", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(type(self).__name__, "by", self.by, ("step", "epoch"))


class Scalars(SeriesAction):
    """Points of curves in TensorBoard, one a name.

    Attributes:
        values: name -> scalar.
        fresh: name -> whether it was reported now, bool (); what was not is left out. None for all.
    """

    values: dict[str, Any]
    fresh: dict[str, Any] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.values.items():
            if jnp.ndim(value):
                raise ValueError(
                    f"Scalars takes scalars, got {name!r} of shape {jnp.shape(value)}. Reduce it, or use jc.Histogram."
                )


class OfArrays(SeriesAction, RequestAction):
    """Abstract: a series action of one array, or a request for one of each array of a tree."""

    tag: str = static()

    def check(self, values: Any) -> None:
        """Requires values, or a request for them.

        Raises:
            ValueError: for both, or neither.
        """
        super().__post_init__()
        kind = type(self).__name__
        if (values is None) == (self.of is None):
            raise ValueError(f"{kind} {self.tag!r} takes an array, or of= with what to look at; one of two.")
        if self.of is None and self.where != "**":
            raise ValueError(f"{kind} {self.tag!r}: where= chooses among what of= gives, but there is no of=.")

    def tagged(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Returns what was asked for and is not empty, by the tag of each."""
        chosen = {path: x for path, x in self.chosen(arrays).items() if jnp.size(x)}
        return {f"{self.tag}/{path}" if path else self.tag: x for path, x in chosen.items()}

    def place(self) -> dict[str, Any]:
        """Where its answers go."""
        return {"run": self.run, "log_dir": self.log_dir, "by": self.by}


class Histogram(OfArrays):
    """How values are spread, in TensorBoard: counted on the device, so that only the counts travel.

    NaN and infinities are left out. Values that are given are counted whenever the hook runs, due or not. What is
    asked for with `of=` is counted only when the action fires; it is one histogram for each array, `tag/path`.

    Args:
        values: numbers, of any shape; the action does not hold them.

    Attributes:
        tag: its name.
        bins: how many of equal width, from the smallest value to the largest.
        of: in place of values: "params", "grads", "updates" or "activations" (the outputs of a Flax model's modules),
            or a function, as for every `RequestAction`.
        where: pattern of the paths that are looked at, for `of`.
        counts: values in each, int32 (bins,).
        limits: of the bins, float32 (bins + 1,).
        low: the smallest value, float32 (); 0 where there is none.
        high: the largest, float32 (); 0 where there is none.
        total: their sum, float32 ().
        squares: the sum of their squares, float32 ().

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> jc.Histogram("weights", jnp.array([0.0, 1.0, 1.5, 4.0]), bins=2).counts.tolist()
        [3, 1]
        >>> asked = jc.Histogram("weights", of="params", where="**/kernel")
        >>> [h.tag for h in asked.answer({"dense/kernel": jnp.ones((2, 3)), "dense/bias": jnp.zeros(3)})]
        ['weights/dense/kernel']
    """

    values: dataclasses.InitVar[Any] = None
    bins: int = static(default=64)
    counts: Any = dataclasses.field(init=False, default=None)
    limits: Any = dataclasses.field(init=False, default=None)
    low: Any = dataclasses.field(init=False, default=None)
    high: Any = dataclasses.field(init=False, default=None)
    total: Any = dataclasses.field(init=False, default=None)
    squares: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self, values: Any) -> None:
        self.check(values)
        if not isinstance(self.bins, int) or self.bins < 1:
            raise ValueError(f"Histogram {self.tag!r}: bins must be a whole number above 0, got {self.bins!r}.")
        if self.of is not None:
            return
        x = jnp.ravel(jnp.asarray(values)).astype(jnp.float32)
        if not x.size:
            raise ValueError(f"Histogram {self.tag!r} got an array of shape {jnp.shape(values)}, expected some values.")
        counted = jnp.isfinite(x)
        low, high = jnp.min(x, where=counted, initial=jnp.inf), jnp.max(x, where=counted, initial=-jnp.inf)
        low, high = (jnp.where(jnp.any(counted), v, 0.0) for v in (low, high))
        # equal values get a bin of width 1 around them, as in numpy
        half = jnp.where(high > low, 0.0, 0.5)
        limits = jnp.linspace(low - half, high + half, self.bins + 1, dtype=jnp.float32)
        # as numpy does: by arithmetic, then put right by what the limits say; several times as fast as a search
        small = jnp.where(jnp.maximum(-low, high) > 1e30, 1e-20, 1.0)  # neither it nor its inverse leaves the range
        width = jnp.where(high > low, high * small - low * small, 1.0)
        index = jnp.clip((((x * small - low * small) / width + half) * self.bins).astype(jnp.int32), 0, self.bins - 1)
        index = jnp.where(x < limits[index], index - 1, index)
        index = jnp.where((x >= limits[index + 1]) & (index < self.bins - 1), index + 1, index)
        x = jnp.where(counted, x, 0.0)
        self._set("counts", jnp.zeros(self.bins, jnp.int32).at[index].add(counted.astype(jnp.int32)))
        self._set("limits", limits)
        self._set("low", low)
        self._set("high", high)
        self._set("total", jnp.sum(x))
        self._set("squares", jnp.sum(x * x))

    def answer(self, arrays: dict[str, Any]) -> tuple["Histogram", ...]:
        return tuple(Histogram(tag, x, self.bins, **self.place()) for tag, x in self.tagged(arrays).items())


class Image(OfArrays):
    """A picture in TensorBoard.

    Attributes:
        tag: its name.
        image: uint8 (height, width) or (height, width, channels) with 1, 3 or 4 channels. Floats in [0, 1] are
            brought to uint8 on the device, what lies outside is clipped.
        of: in place of an image: what is drawn of each array, as for `Histogram`: its smallest value black and its
            largest white; the filters of a convolution side by side; only when the action fires.
        where: pattern of the paths that are drawn, for `of`.
        largest: pixels that a side of such a picture may have; larger arrays are sampled.
    """

    image: Any = None
    largest: int = static(default=512, kw_only=True)

    def __post_init__(self) -> None:
        self.check(self.image)
        if self.of is not None:
            return
        self._set("image", as_pixels(self.image, f"Image {self.tag!r}"))

    def answer(self, arrays: dict[str, Any]) -> tuple["Image", ...]:
        pictures = {tag: as_picture(x, self.largest) for tag, x in self.tagged(arrays).items()}
        return tuple(Image(tag, picture, **self.place()) for tag, picture in pictures.items())


class Text(SeriesAction):
    """A text in TensorBoard, in Markdown: `text` is a template filled as `Stop.reason` is.

    Attributes:
        tag: its name.
        text: the template.
        values: what the template needs beyond metrics, name -> scalar.
    """

    tag: str = static()
    text: str = static()
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    template = "text"
