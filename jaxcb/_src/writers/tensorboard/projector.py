"""Files for TensorBoard's projector: vectors, their labels and their images."""

import io
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.core.metric_names import as_text
from jaxcb._src.storage.ownership import RunRecord, remove_files

ROOM = "projector"  # the directory that has one subdirectory per embedding
_CONFIG = "projector_config.pbtxt"
_VECTORS, _LABELS, _SPRITES = _FILES = ("vectors.tsv", "labels.tsv", "sprites.png")
# as `add` writes it; strings are in JSON's syntax
_PART = re.compile(r'embeddings \{\n  tensor_name: ".*"\n  tensor_path: (".*")\n(?:  .*\n)*\}\n')
_PLAIN = re.compile(r"[\w.\-]+")


class Projector:
    """The embeddings of a run in a directory; everything that was added is durable.

    Other runs may have embeddings in the same directory. Their files, and their parts of the configuration, are kept.

    Args:
        directory: the directory of event files.
        record: the record of the run; None for a new one.
        prefix: the record's key of the subdirectory `projector`.
    """

    def __init__(self, directory: Path, record: RunRecord | None = None, prefix: str = ROOM) -> None:
        self._directory = directory
        self._record, self._prefix = record or RunRecord(), prefix
        self._parts: dict[str, str] = {}  # subdirectory -> its part of the configuration
        self._cleared = False  # whether subdirectories that the run made and no longer has were removed

    def add(
        self, name: str, vectors: np.ndarray, columns: Sequence[Sequence[str]] | Path | None, sprites: Any = None
    ) -> None:
        """Adds vectors.

        Args:
            name: their name on the page.
            vectors: float32 (rows, size).
            columns: columns of texts, each with one text per row; or a file that has them.
            sprites: uint8 (rows, height, width), optionally with a last axis of channels; None for points.
        """
        self._clear()
        folder = re.sub(r"[^\w.\-]+", "_", name)
        while folder in self._parts or (self._directory / ROOM / folder).exists():
            folder += "_"  # names may differ only in replaced characters, or another run may use this one
        room = self._directory / ROOM / folder
        self._record.make(f"{self._prefix}/{folder}", _FILES)
        room.mkdir(parents=True)
        about = {"tensor_name": name, "tensor_path": self._put(room / _VECTORS, _table(vectors))}
        if isinstance(columns, Path):
            about["metadata_path"] = self._put(room / _LABELS, columns.read_bytes())
        elif columns is not None:
            about["metadata_path"] = self._put(room / _LABELS, _table(zip(*columns, strict=True)))
        part = "".join(f"  {key}: {json.dumps(value)}\n" for key, value in about.items())
        if sprites is not None:
            path, (height, width) = self._put(room / _SPRITES, _sheet(sprites)), sprites.shape[1:3]
            part += f"  sprite {{\n    image_path: {json.dumps(path)}\n"
            part += f"    single_image_dim: [{width}, {height}]\n  }}\n"
        self._parts[folder] = f"embeddings {{\n{part}}}\n"
        self._configure()

    def position(self) -> list[str]:
        """Returns the current parts of the configuration, as JSON."""
        return list(self._parts.values())

    def restore(self, parts: Sequence[str], warn: Callable[[str], None] = lambda text: None) -> None:
        """Restores the run's parts of the configuration, and removes what it added later.

        Args:
            parts: a result of `position`.
            warn: called with a warning about each invalid part, which is ignored.
        """
        self._parts = {}
        for part in parts:
            match = _PART.fullmatch(part)
            folder = None if match is None else _room_of(match)
            if folder is None:
                warn(f"the checkpoint names an embedding in {self._directory} that no run has written; it is ignored.")
            else:
                self._parts[folder] = part
                self._record.make(f"{self._prefix}/{folder}", _FILES)
        self._clear()

    def _clear(self) -> None:
        """Removes the subdirectories that the run has made and no longer has."""
        if self._cleared:
            return
        self._cleared = True
        gone = [key.removeprefix(f"{self._prefix}/") for key in self._record.made if key.startswith(f"{self._prefix}/")]
        gone = [folder for folder in gone if folder not in self._parts and _is_plain(folder)]
        for folder in gone:
            remove_files(self._directory / ROOM / folder, _FILES)
        if gone or self._parts:
            self._configure(gone)

    def _configure(self, gone: Sequence[str] = ()) -> None:
        """Writes the configuration: the parts of other runs, then the run's own."""
        path = self._directory / _CONFIG
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        mine = {*self._parts, *gone}
        others = _PART.sub(lambda part: "" if _room_of(part) in mine else part[0], before)
        text = others + "".join(self._parts.values())
        if text == before:
            return
        if not text:
            path.unlink()
            return
        new = path.with_name(f"{_CONFIG}.{self._record.run}.new")
        self._put(new, text.encode())
        new.replace(path)

    def _put(self, path: Path, content: bytes) -> str:
        """Writes a file durably; returns its path as in the configuration."""
        path.unlink(missing_ok=True)  # it might be a link
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return path.relative_to(self._directory).as_posix()


def _is_plain(name: str) -> bool:
    return bool(_PLAIN.fullmatch(name) and name.strip("."))


def _room_of(part: re.Match[str]) -> str | None:
    """Returns the subdirectory of a part of the configuration; None if it is not one of `projector`."""
    try:
        above, folder, file = json.loads(part[1]).split("/")
    except ValueError:
        return None
    return folder if (above, file) == (ROOM, _VECTORS) and _is_plain(folder) else None


def _table(rows: Iterable[Iterable[Any]]) -> bytes:
    lines = ("\t".join(x if isinstance(x, str) else as_text(x) for x in row) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def _sheet(sprites: np.ndarray) -> bytes:
    """Returns all images on one square sheet, row by row, as a PNG."""
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
