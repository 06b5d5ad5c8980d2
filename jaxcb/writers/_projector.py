"""Files for TensorBoard's projector: vectors, what they are called, and their pictures."""

import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._rows import as_text

_CONFIG = "projector_config.pbtxt"
_ROOM = "projector"


class Projector:
    """The embeddings of a run's directory; all that was added is durable.

    Args:
        directory: the run's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._parts: list[str] = []  # what the configuration says of each

    def add(
        self, name: str, vectors: np.ndarray, columns: Sequence[Sequence[str]] | Path | None, sprites: Any = None
    ) -> None:
        """Adds vectors, one a row.

        Args:
            name: its name on the page.
            vectors: float32 (rows, size).
            columns: of texts, a column each of as many as there are rows; or a file that has them.
            sprites: uint8 (rows, height, width), or with channels behind; None for points.
        """
        own = re.sub(r"[^\w.\-]+", "_", name)
        while self._has(own):  # names may differ in what no file's name can hold
            own += "_"
        room = self._directory / _ROOM / own
        shutil.rmtree(room, ignore_errors=True)  # of a process that was killed in here
        room.mkdir(parents=True)
        about = {"tensor_name": name, "tensor_path": self._put(room / "vectors.tsv", _table(vectors))}
        if isinstance(columns, Path):
            about["metadata_path"] = self._put(room / "labels.tsv", columns.read_bytes())
        elif columns is not None:
            about["metadata_path"] = self._put(room / "labels.tsv", _table(zip(*columns, strict=True)))
        part = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in about.items())
        if sprites is not None:
            path, (height, width) = self._put(room / "sprites.png", _sheet(sprites)), sprites.shape[1:3]
            part += f"  sprite {{\n    image_path: {json.dumps(path)}\n"
            part += f"    single_image_dim: [{width}, {height}]\n  }}\n"
        self._parts.append(f"embeddings {{\n{part}}}\n")
        self._configure()

    def position(self) -> list[str]:
        """What it has so far, as JSON."""
        return list(self._parts)

    def restore(self, parts: Sequence[str]) -> None:
        """Goes back to what it had, and removes what came later."""
        self._parts = list(parts)
        for room in sorted((self._directory / _ROOM).glob("*")):
            if not self._has(room.name):
                shutil.rmtree(room)
        if self._parts:
            self._configure()
        else:
            (self._directory / _CONFIG).unlink(missing_ok=True)

    def _has(self, room: str) -> bool:
        return any(json.dumps(f"{_ROOM}/{room}/vectors.tsv") in part for part in self._parts)

    def _configure(self) -> None:
        new = self._directory / f"{_CONFIG}.new"
        self._put(new, "".join(self._parts).encode())
        new.replace(self._directory / _CONFIG)

    def _put(self, path: Path, content: bytes) -> str:
        """Writes a file, durably; returns its path as the configuration has it."""
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return path.relative_to(self._directory).as_posix()


def _table(rows: Iterable[Iterable[Any]]) -> bytes:
    lines = ("\t".join(x if isinstance(x, str) else as_text(x) for x in row) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def _sheet(sprites: np.ndarray) -> bytes:
    """All pictures on one square sheet, row by row, as a PNG."""
    from PIL import Image

    count, height, width, *channels = sprites.shape
    side = math.ceil(math.sqrt(count))
    sheet = np.zeros((side * side, height, width, *channels), np.uint8)
    sheet[:count] = sprites
    sheet = sheet.reshape(side, side, height, width, *channels).swapaxes(1, 2)
    sheet = sheet.reshape(side * height, side * width, *channels)
    file = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == [1] else sheet).save(file, "PNG")
    return file.getvalue()
