"""TensorBoard's event files, read as a log.

The frames are read here, and the messages by tensorboardX: TensorBoard's own reader is in a package that would be a
further dependency, and imports for a second.
"""

import math
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.history.log_formats import Row, log_format
from jaxcb._src.utils.errors import DataError

NAME = "events.out.tfevents."  # begins the name of an event file
_HEADER = struct.Struct("<QI")  # length, and its checksum
_MOST = 1 << 28  # bytes of an event
_VALIDATION = {"validation", "val", "eval", "test", "valid"}  # directories whose metrics are those of a validation
_EPOCH_PREFIX = "epoch_"  # of the tags that Keras and jaxcb write at the end of an epoch
_SKIPPED = ("keras", "hparams", "_hparams_", "hp_metric")


def _is_log(path: Path) -> bool:
    return path.name.startswith(NAME) if path.is_file() else path.is_dir() and any(_files(path))


def _files(directory: Path) -> Iterator[Path]:
    yield from (path for path in sorted(directory.rglob(f"{NAME}*")) if path.is_file())


@log_format("TensorBoard's event files", _is_log)
def read_events(path: Path) -> Iterator[Row]:
    """Yields the scalars of the event files in a directory, a row for each step.

    Tags of a directory called `validation` get the prefix `val_`. Where there are tags of epochs, such as Keras's
    `epoch_loss`, only these are read, without their prefix, and the epoch of a row is its number.
    """
    files = [path] if path.is_file() else list(_files(path))
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for file in files:
        prefix = "val_" if file.parent.name.lower() in _VALIDATION else ""
        for step, tag, value in _scalars(file):
            if not tag.startswith(_SKIPPED):
                found[prefix + tag if not tag.startswith(_EPOCH_PREFIX) else f"{_EPOCH_PREFIX}{prefix}{tag[6:]}"][
                    step
                ] = value
    of_epochs = {tag[len(_EPOCH_PREFIX) :]: column for tag, column in found.items() if tag.startswith(_EPOCH_PREFIX)}
    columns = of_epochs or found
    for number, step in enumerate(sorted({step for column in columns.values() for step in column})):
        place = {"step": step, "epoch": number} if of_epochs else {"step": step}
        yield place | {tag: column.get(step) for tag, column in columns.items()}


def _scalars(path: Path) -> Iterator[tuple[int, str, float]]:
    """Yields step, tag and value of each scalar."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    for data in _frames(path):
        try:
            event = Event.FromString(data)
        except Exception as error:  # of the library of protocol buffers
            raise DataError(f"{path} has an event that cannot be read ({error}).") from None
        for value in event.summary.value:
            number = _number(value)
            if number is not None:
                yield int(event.step), str(value.tag), number


def images_in(directory: Path, most: int) -> dict[str, tuple[int, bytes]]:
    """Returns the last image of each tag in the event files below a directory, as PNG or JPEG.

    Args:
        directory: where to look.
        most: bytes of all images together; those that would exceed it are left out.

    Returns:
        tag -> step and image.
    """
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    found: dict[str, tuple[int, bytes]] = {}
    for file in _files(directory):
        try:
            for event in map(Event.FromString, _frames(file)):
                for value in event.summary.value:
                    data = bytes(value.image.encoded_image_string) if value.WhichOneof("value") == "image" else b""
                    if data.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")):
                        found[str(value.tag)] = int(event.step), data
        except Exception:  # a damaged file has no images; `verify` names it
            continue
    size, kept = 0, {}
    for tag, (step, data) in sorted(found.items()):
        if size + len(data) <= most:
            kept[tag] = step, data
            size += len(data)
    return kept


def _frames(path: Path) -> Iterator[bytes]:
    """Yields the events of a file, without their checksums. The last one may be incomplete."""
    from tensorboardX.crc32c import crc32c

    with path.open("rb") as file:
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            length, checksum = _HEADER.unpack(header)
            if checksum != _masked(crc32c(header[:8])) or length > _MOST:
                raise DataError(f"{path} is damaged at byte {file.tell() - _HEADER.size}, or not an event file.")
            data = file.read(length)
            if len(data) < length or len(file.read(4)) < 4:
                return
            yield data


def _masked(checksum: int) -> int:
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _number(value: Any) -> float | None:
    """Returns a scalar of an event, in the form of TensorFlow 1 or 2; None for anything else."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind != "tensor" or (value.metadata.plugin_data.plugin_name or "scalars") != "scalars":
        return None
    tensor = value.tensor
    if any(dim.size != 1 for dim in tensor.tensor_shape.dim):
        return None
    for field in ("float_val", "double_val", "int_val", "int64_val", "half_val"):
        numbers = getattr(tensor, field)
        if len(numbers) == 1:
            return float(numbers[0])
    dtypes = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # of TensorFlow's DataType
    if tensor.dtype in dtypes and len(tensor.tensor_content) == np.dtype(dtypes[tensor.dtype]).itemsize:
        return float(np.frombuffer(tensor.tensor_content, dtypes[tensor.dtype])[0])
    return 0.0 if tensor.dtype in (1, 2) and not tensor.tensor_content else math.nan
