"""`Embedding`: vectors for TensorBoard's projector."""

import os
from typing import Any

import jax.numpy as jnp

from jaxcb._actions._series import OfArrays
from jaxcb._local_path import path_text
from jaxcb._pictures import as_pixels
from jaxcb._struct import static


class Embedding(OfArrays):
    """Vectors for TensorBoard's projector, which shows them as points in space.

    Attributes:
        tag: its name.
        vectors: a point a row, (rows, size).
        labels: a text for each row; or the path of a file with a line for each, and where its lines have several
            columns, parted by tabs, a line before them with the columns' names.
        classes: int (rows,): which of `labels` each row has, or without labels its number.
        sprites: a picture for each row, (rows, height, width), or with 1, 3 or 4 channels behind; uint8, or floats in
            [0, 1].
        of: in place of vectors: "params", or a function of the train state, such as one that runs the model; in
            `on_before_update` of a `Look`. Of what it returns each matrix is one embedding, `tag/path`.
        where: pattern of the paths that are looked at, for `of`.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> jc.Embedding("words", jnp.eye(3), ("cat", "dog", "fish")).vectors.shape
        (3, 3)
    """

    vectors: Any = None
    labels: Any = static(default=None)
    classes: Any = None
    sprites: Any = None

    def __post_init__(self) -> None:
        what = f"Embedding {self.tag!r}"
        self.check(self.vectors)
        if isinstance(self.labels, str | bytes | os.PathLike):
            self._set("labels", path_text("Embedding", "labels", self.labels))
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
            raise ValueError(f"{what} has {rows} rows and {len(self.labels)} labels; pass one a row, or classes=.")
        if self.classes is not None and (
            jnp.shape(self.classes) != (rows,) or not jnp.issubdtype(jnp.asarray(self.classes).dtype, jnp.integer)
        ):
            raise ValueError(f"{what}: classes must be integers of shape ({rows},), got {jnp.shape(self.classes)}.")
        if self.sprites is not None and self.sprites.shape[0] != rows:
            raise ValueError(f"{what} has {rows} rows and {self.sprites.shape[0]} sprites, expected one a row.")

    def answer(self, arrays: dict[str, Any]) -> tuple["Embedding", ...]:
        more = dict(classes=self.classes, sprites=self.sprites, **self.place())
        found = {tag: x for tag, x in self.tagged(arrays).items() if jnp.ndim(x) == 2}
        if not found:
            raise ValueError(f"Embedding {self.tag!r}: what of={self.of!r} gives has no matrix of shape (rows, size).")
        return tuple(Embedding(tag, x, self.labels, **more) for tag, x in found.items())
