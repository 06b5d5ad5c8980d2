"""W&B's offline files (`offline-run-*/run-*.wandb`), read as a log.

The file is a log of LevelDB with messages of protocol buffers, which the package wandb describes. Its own reader of
such files is part of a program in another language.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcb._src.history.log_formats import Row, log_format, numbers_of
from jaxcb._src.utils.errors import DataError

_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_BLOCK = 32768
_FILE_HEADER = 7
_WHOLE, _LAST = 1, 4  # kinds of a part: a whole record, and the last part of one
_MOST = 1 << 28  # bytes of a record


def _file_in(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".wandb" else None
    found = sorted(path.glob("run-*.wandb")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None


@log_format("W&B's offline files", lambda path: _file_in(path) is not None)
def read_wandb(path: Path) -> Iterator[Row]:
    """Yields the rows of an offline run.

    Raises:
        ImportError: without the package wandb.
        DataError: for a damaged file.
    """
    file = _file_in(path)
    assert file is not None
    for row in logged_rows(file):
        yield dict(numbers_of(row))


def logged_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields what was logged: name -> value, with the step as `_step`.

    Args:
        path: a file `run-*.wandb`, which may end within a record if its process was killed.

    Raises:
        ImportError: without the package wandb.
        DataError: for a damaged file.
    """
    try:
        from wandb.proto import wandb_internal_pb2
    except ImportError:
        raise ImportError(f"{path} needs the package wandb to be read: pip install jaxcb[wandb].") from None
    messages: Any = wandb_internal_pb2
    for data in _records(path):
        try:
            record = messages.Record.FromString(data)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        except Exception as error:  # of the library of protocol buffers, or of JSON
            raise DataError(f"{path} has a record that cannot be read ({error}).") from None
        if row:
            yield {"_step": record.history.step.num} | row


def _records(path: Path) -> Iterator[bytes]:
    """Yields the records of a LevelDB log. The last one may be incomplete."""
    parts = b""
    with path.open("rb") as file:
        if not b":W&B".startswith(file.read(4)):  # a process that was killed may leave no more than a part of it
            raise DataError(f"{path} is not an offline file of W&B.")
        at = _FILE_HEADER
        file.seek(at)
        while True:
            room = _BLOCK - at % _BLOCK
            if room < _HEADER.size:  # the end of a block has no room for a header
                at += room
                file.seek(at)
                continue
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            checksum, length, kind = _HEADER.unpack(header)
            if not kind:  # space at the end that was never written
                return
            data = file.read(length)
            if len(data) < length:
                return
            at += _HEADER.size + length
            parts += data
            if len(parts) > _MOST or zlib.crc32(data, zlib.crc32(header[-1:])) != checksum:
                raise DataError(f"{path} is damaged at byte {at}.")
            if kind in (_WHOLE, _LAST):
                yield parts
                parts = b""
