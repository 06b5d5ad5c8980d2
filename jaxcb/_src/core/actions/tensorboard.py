"""TensorBoard actions: scalars, histograms, images, texts, embeddings, graphs, hyperparameters and figures."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp

from jaxcb._src.core.actions.base import LazyLogAction, LogAction
from jaxcb._src.utils.errors import check_choice
from jaxcb._src.utils.images import as_picture, as_pixels
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static

if TYPE_CHECKING:
    from jax.extend import core  # imports Pallas
from collections.abc import Callable


class TensorBoardAction(LogAction):
    """Base class of log actions for TensorBoard.

    Attributes:
        run: the run's directory below `log_dir`, such as "train" or "validation".
        log_dir: the directory of all runs; a relative path is below `run_dir` if there is one.
    """

    run: str = static(default="train", kw_only=True)
    log_dir: str = static(default="logs", kw_only=True)

    def __post_init__(self) -> None:
        self._set("log_dir", path_text(type(self).__name__, "log_dir", self.log_dir))
        if self.run != "":  # "" is `log_dir` itself
            path_text(type(self).__name__, "run", self.run, buckets=False)


class SeriesAction(TensorBoardAction):
    """Base class of TensorBoard actions that add one step to the series `tag` of a run.

    Series with the same tag share a chart, with one line per run.

    Attributes:
        by: the x axis: "step" for the updates done, "epoch" for the index of the epoch, from 0.
    """

    by: Literal["step", "epoch"] = static(default="step", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(type(self).__name__, "by", self.by, ("step", "epoch"))


class Scalars(SeriesAction):
    """Adds one point to each named curve in TensorBoard.

    Attributes:
        values: name -> scalar.
        fresh: name -> whether it is reported in this hook call, bool (); other values are left out. None for all.
    """

    values: dict[str, Any]
    fresh: dict[str, Any] | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.values.items():
            if jnp.ndim(value):
                raise ValueError(
                    f"Scalars takes scalars, got {name!r} of shape {jnp.shape(value)}. Reduce it, or use "
                    "jc.actions.Histogram."
                )


class OfArrays(SeriesAction, LazyLogAction):
    """Abstract: a series action of one array, or of each array of a pytree that `of` selects."""

    tag: str = static()

    def check(self, values: Any) -> None:
        """Checks that exactly one of `values` and `of` is given.

        Raises:
            ValueError: for both, or neither.
        """
        super().__post_init__()
        kind = type(self).__name__
        if (values is None) == (self.of is None):
            raise ValueError(f"{kind} {self.tag!r} takes either an array or of=, got both or neither.")
        if self.of is None and self.where != "**":
            raise ValueError(f"{kind} {self.tag!r}: where= selects arrays of of=, but of= is not given.")

    def tagged(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Returns the non-empty arrays that `where` matches: tag -> array."""
        chosen = {path: x for path, x in self.chosen(arrays).items() if jnp.size(x)}
        return {f"{self.tag}/{path}" if path else self.tag: x for path, x in chosen.items()}

    def place(self) -> dict[str, Any]:
        """Returns the fields that the answers share with this action."""
        return {"run": self.run, "log_dir": self.log_dir, "by": self.by}


class Histogram(OfArrays):
    """Logs the distribution of values as a histogram in TensorBoard; only the counts leave the device.

    NaN and infinities are left out. Values that are passed in are counted in every hook call, whether the action fires
    or not. Arrays selected with `of=` are counted only when it fires, one histogram per array, `tag/path`.

    Args:
        values: numbers, of any shape; the action does not keep them.

    Attributes:
        tag: the name of the series.
        bins: number of bins, of equal width, from the smallest value to the largest.
        of: instead of values: "params", "grads", "updates" or "activations" (the outputs of a Flax model's modules),
            or a function, as in every `LazyLogAction`.
        where: pattern of the paths to log, for `of`.
        counts: values in each bin, int32 (bins,).
        limits: limits of the bins, float32 (bins + 1,).
        low: the smallest value, float32 (); 0 if there is none.
        high: the largest value, float32 (); 0 if there is none.
        total: the sum of the values, float32 ().
        squares: the sum of their squares, float32 ().

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> jc.actions.Histogram("weights", jnp.array([0.0, 1.0, 1.5, 4.0]), bins=2).counts.tolist()
        [3, 1]
        >>> asked = jc.actions.Histogram("weights", of="params", where="**/kernel")
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
            raise ValueError(f"Histogram {self.tag!r}: bins must be an integer above 0, got {self.bins!r}.")
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
        # As numpy does: compute the bin by arithmetic, then correct it by the limits. This is several times faster than
        # a binary search.
        small = jnp.where(jnp.maximum(-low, high) > 1e30, 1e-20, 1.0)  # keeps `high - low` finite for huge values
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
    """Logs an image in TensorBoard.

    Attributes:
        tag: the name of the series.
        image: uint8 (height, width) or (height, width, channels) with 1, 3 or 4 channels. Floats in [0, 1] are
            converted to uint8 on the device; values outside are clipped.
        of: instead of an image: the arrays to draw, as in `Histogram`, only when the action fires. The smallest value
            is black and the largest white; the filters of a convolution are drawn side by side.
        where: pattern of the paths to draw, for `of`.
        largest: maximum side length of such an image, in pixels; larger arrays are sampled.
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
    """Logs a text in TensorBoard, in Markdown: a template filled as `Stop.reason` is, or what a function makes.

    Attributes:
        tag: the name of the series.
        text: the template; or a function that the host calls with the values, name -> number or array, among them
            `step`, `epoch` (from 1) and the metrics of the hook call, and that returns the text.
        values: further values of the template, name -> scalar; for a function, of any shape.

    Example:
        >>> import jaxcb as jc, numpy as np
        >>> def row(values):
        ...     return " ".join(map(str, values["tokens"]))
        >>> jc.actions.Text("sample", row, values={"tokens": np.arange(3)}).tag
        'sample'
    """

    tag: str = static()
    text: str | Callable[[dict[str, Any]], str] = static()
    values: dict[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    template = "text"


class Embedding(OfArrays):
    """Logs vectors for TensorBoard's projector, which shows them as points in space.

    Attributes:
        tag: the name of the series.
        vectors: one point per row, (rows, size).
        labels: a text for each row; or the path of a file with one line per row. If its lines have several
            tab-separated columns, the first line has their names.
        classes: int (rows,): the index into `labels` of each row, or its class number if there are no labels.
        sprites: an image for each row, (rows, height, width), optionally with a last axis of 1, 3 or 4 channels; uint8,
            or floats in [0, 1].
        of: instead of vectors: "params", or a function, which receives a `StepView` in `on_before_update` and the train
            state in all other hooks; it can, for example, run the model. Each matrix of its result is one embedding,
            `tag/path`.
        where: pattern of the paths to log, for `of`.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> jc.actions.Embedding("words", jnp.eye(3), ("cat", "dog", "fish")).vectors.shape
        (3, 3)
    """

    vectors: Any = None
    labels: Any = static(default=None)
    classes: Any = None
    sprites: Any = None

    # The checks are in one function because they depend on each other: `labels` counts rows or classes, and only a
    # payload that is already known (no `of=`) has rows to compare with.
    def __post_init__(self) -> None:
        what = f"Embedding {self.tag!r}"
        self.check(self.vectors)
        if isinstance(self.labels, str | bytes | os.PathLike):
            self._set("labels", path_text("Embedding", "labels", self.labels, buckets=False))
        elif self.labels is not None:
            self._set("labels", tuple(map(str, self.labels)))
        if self.sprites is not None:
            self._set("sprites", as_pixels(self.sprites, f"the sprites of {what}", axes=1))
        if self.of is not None:
            return
        vectors = jnp.asarray(self.vectors)
        if vectors.ndim != 2 or not vectors.size:
            raise ValueError(f"{what} has vectors of shape {vectors.shape}, expected (rows, size).")
        if jnp.iscomplexobj(vectors):
            raise TypeError(f"{what} has vectors of {vectors.dtype}, expected real numbers.")
        self._set("vectors", vectors.astype(jnp.float32))
        rows = vectors.shape[0]
        if isinstance(self.labels, tuple) and self.classes is None and len(self.labels) != rows:
            raise ValueError(f"{what} has {rows} rows and {len(self.labels)} labels; pass one per row, or classes=.")
        if self.classes is not None and (
            jnp.shape(self.classes) != (rows,) or not jnp.issubdtype(jnp.asarray(self.classes).dtype, jnp.integer)
        ):
            raise ValueError(f"{what}: classes must be integers of shape ({rows},), got {jnp.shape(self.classes)}.")
        if self.sprites is not None and self.sprites.shape[0] != rows:
            raise ValueError(f"{what} has {rows} rows and {self.sprites.shape[0]} sprites, expected one per row.")

    def answer(self, arrays: dict[str, Any]) -> tuple["Embedding", ...]:
        more = dict(classes=self.classes, sprites=self.sprites, **self.place())
        found = {tag: x for tag, x in self.tagged(arrays).items() if jnp.ndim(x) == 2}
        if not found:
            raise ValueError(f"Embedding {self.tag!r}: of={self.of!r} has no matrix of shape (rows, size).")
        return tuple(Embedding(tag, x, self.labels, **more) for tag, x in found.items())


class Graph(TensorBoardAction):
    """Draws the operations that compute a model's loss, for TensorBoard's Graphs page.

    They are grouped by the modules and functions that called them; the edges show shapes.

    Attributes:
        jaxpr: the graph to draw, as `jax.make_jaxpr` returns it; None for the run's training step, up to its loss.
        outputs: names of the step's metrics whose computation is drawn, if `jaxpr` is None; () for "loss" if there is
            one, else for all.

    Example:
        >>> import jax, jaxcb as jc, jax.numpy as jnp
        >>> jc.actions.Graph(jax.make_jaxpr(lambda w, x: jnp.tanh(x @ w))(jnp.ones((3, 4)), jnp.ones((5, 3)))).run
        'train'
    """

    jaxpr: "core.ClosedJaxpr | None" = static(default=None, repr=False)
    outputs: tuple[str, ...] = static(default=(), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jaxpr is not None and not hasattr(self.jaxpr, "jaxpr"):
            raise TypeError(f"Graph takes the result of jax.make_jaxpr(fn)(*args), got a {type(self.jaxpr).__name__}.")
        self._set("outputs", (self.outputs,) if isinstance(self.outputs, str) else tuple(self.outputs))


class LogConfiguration(TensorBoardAction):
    """Logs the arguments of `fit` and of the callbacks as a table on TensorBoard's Text page.

    Attributes:
        tag: the name of the series.
    """

    tag: str = static(default="configuration")


class HParams(TensorBoardAction):
    """Logs hyperparameters and final metrics for TensorBoard's HParams page, which compares runs.

    Without `final` it starts the run's row, with `settings`, `fit`'s arguments and the numbers of callbacks that a
    sweep can change. With `final` it ends the row.

    Attributes:
        settings: name -> number, text or boolean; None is left out. Stored as pairs.
        final: name -> scalar, the metrics at the end; they are shown in the column `final/name`.

    Example:
        >>> import jaxcb as jc
        >>> jc.actions.HParams({"units": 128, "activation": "relu"}).settings
        (('units', 128), ('activation', 'relu'))
    """

    settings: Any = static(default=())
    final: dict[str, Any] | None = dataclasses.field(default=None, kw_only=True)
    run: str = static(default="hparams", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = tuple(self.settings.items() if isinstance(self.settings, Mapping) else self.settings)
        for name, value in pairs:
            if not (value is None or isinstance(value, bool | int | float | str)):
                raise TypeError(
                    f"HParams: {name!r} is a {type(value).__name__}, expected a number, a text or a boolean."
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"HParams: {name!r} is {value}, expected a finite number.")
        self._set("settings", tuple((str(name), value) for name, value in pairs))
        for name, value in (self.final or {}).items():
            if jnp.ndim(value):
                raise ValueError(f"HParams: final takes scalars, got {name!r} of shape {jnp.shape(value)}.")


class Figure(SeriesAction, LazyLogAction):
    """Logs an image in TensorBoard that a function draws on the host, with matplotlib or as an array.

    Attributes:
        tag: the name of the series.
        draw: `draw(values)` receives arrays by name and returns a matplotlib figure, or an array as `Image` takes it.
            The training thread calls it: create the figure with `matplotlib.figure.Figure()`.
        values: name -> array, the data to draw.
        of: instead of `values`: arrays by path, computed only when the action fires.

    Example:
        >>> import jaxcb as jc, numpy as np
        >>> bars = lambda values: np.stack([values["share"]] * 3)
        >>> jc.actions.Figure("bars", bars, {"share": np.array([0.25, 0.75])}).draw({"share": np.zeros(2)}).shape
        (3, 2)
    """

    tag: str = static()
    draw: Callable[[dict[str, Any]], Any] = static()
    values: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.draw):
            raise TypeError(f"Figure {self.tag!r} takes a function of its values, got a {type(self.draw).__name__}.")
        if self.values and self.of is not None:
            raise ValueError(f"Figure {self.tag!r} takes either values or of=, got both.")

    def answer(self, arrays: dict[str, Any]) -> tuple["Figure"]:
        return (self.replace(values=self.chosen(arrays), of=None, where="**"),)
