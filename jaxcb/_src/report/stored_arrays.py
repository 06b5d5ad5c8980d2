"""Arrays of checkpoints, read with TensorStore alone, without JAX and Orbax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._src.checkpointing.manifest import ArrayEntry, Saved
from jaxcb._src.storage.ownership import is_inside

_ARRAYS = Path("arrays", "state")  # where Orbax writes a pytree
_DRIVERS = ("zarr3", "zarr")
_STATE_BYTES = 1 << 12  # of an array of a callback's state that is shown
_AT_MOST = 1 << 30  # bytes of an array that are read at a time


class UnreadableError(Exception):
    """An array that cannot be read, with the reason."""


def check_array(saved: Saved, entry: ArrayEntry) -> None:
    """Reads an array of a checkpoint, and compares its shape and dtype with the manifest.

    Raises:
        UnreadableError: if it cannot be read, or is another one.
    """
    if not entry.empty:
        array = _open(saved, entry)
        if entry.nbytes <= _AT_MOST:
            _read(array)
            return
        rows = max(1, _AT_MOST * entry.shape[0] // entry.nbytes)
        for start in range(0, entry.shape[0], rows):
            _read(array[start : start + rows])


def callback_states(saved: Saved) -> dict[str, dict[str, Any]]:
    """Returns the states of the callbacks in a checkpoint: name -> path in its state -> number or list.

    Raises:
        UnreadableError: if an array cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in saved.entries:
        owner, _, path = entry.name.removeprefix(".callbacks['").partition("']")
        if not entry.name.startswith(".callbacks['"):
            continue
        state = found.setdefault(owner, {})
        if entry.empty:
            continue
        shown = path.removeprefix(".") or "state"
        shape = "x".join(map(str, entry.shape))
        state[shown] = (
            _read(_open(saved, entry)).tolist() if entry.nbytes <= _STATE_BYTES else f"{entry.dtype} array of {shape}"
        )
    return found


def _open(saved: Saved, entry: ArrayEntry) -> Any:
    import tensorstore

    if not is_inside(entry.key):
        raise UnreadableError(f"{entry.name}: its key is {entry.key!r}")
    base = {"driver": "file", "path": f"{saved.path / _ARRAYS}/"}
    store: Mapping[str, Any] = {"driver": "ocdbt", "base": base, "path": f"{entry.key}/"}
    reasons = []
    for driver in _DRIVERS:
        try:
            array = tensorstore.open({"driver": driver, "kvstore": store}, open=True, read=True).result()
            break
        except Exception as error:  # of TensorStore, which has no classes of its own
            reasons.append(str(error).splitlines()[0][:200])
    else:
        raise UnreadableError(f"{entry.name} cannot be found: {reasons[0]}")
    shape, dtype = tuple(array.shape), str(np.dtype(array.dtype.numpy_dtype))
    if (shape, dtype) != (entry.shape, entry.dtype):
        raise UnreadableError(f"{entry.name} is {dtype}{list(shape)}, by the manifest {entry.dtype}{list(entry.shape)}")
    return array


def _read(array: Any) -> np.ndarray:
    try:
        return np.asarray(array.read().result())
    except Exception as error:
        raise UnreadableError(f"an array cannot be read: {str(error).splitlines()[0][:200]}") from None
