"""Orbax, one operation at a time.

Orbax (0.12) numbers its operations with one counter per process, by which a save finds its own directories. A
concurrent save or load would make it find those of the other operation.

All processes of a run take part in each operation, and begin it at the same point with no pending step: Orbax (0.12)
compares the path over the devices when a save begins. Its background work does not use them.

Every path is converted by `local`. Orbax's own path type (etils 1.15) treats `[`, `*` and `?` in the name of a folder
as a pattern when it lists the folder: a save in `lr=[0.1]` did not find the arrays that it had written, and wrote
no index of them. It also treats `/gs/x` as a bucket.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcb._src.utils.platforms import link_or_copy

_PARTS = "ocdbt.process_*"  # directories of the arrays that each process wrote
_INDEX = "manifest.ocdbt"  # index of the arrays of all processes
_COUNTER = "get_tensorstore_raw_bytes"  # a private function of Orbax
_NAME = "state"  # the folder of a checkpoint that holds the arrays, in Orbax 0.12

EXCLUSIVE = threading.Lock()  # held from the begin of an operation until all of it is on disk


def save_async(path: str, tree: Any, **options: Any) -> Callable[[], None]:
    """Begins a save after any other operation. Returns when the arrays may change.

    Returns:
        A function that waits until the save is on disk. It must be called, from any thread.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_operation())
        with _context():
            response = _function("save_async")(local(path), _of_all(tree), **options)
        operation = stack.pop_all()

    def finish() -> None:
        with operation:
            response.result()

    return finish


def save(path: str, tree: Any, **options: Any) -> None:
    """Saves after any other operation, and waits until it is on disk."""
    with _operation(), _context():
        _function("save")(local(path), _of_all(tree), **options)


def load(path: str, abstract: Any, **options: Any) -> Any:
    """Loads after any other operation.

    Args:
        path: the checkpoint.
        abstract: the tree to load.
        **options: of Orbax's `pytree_options.loading`.
    """
    context = _context()
    for name, value in options.items():
        object.__setattr__(context.pytree_options.loading, name, value)  # before Orbax 0.12 the options are frozen
    with _operation(), context, _readable(path) as readable:
        return _function("load")(readable, abstract)


def metadata(path: str) -> Any:
    """Returns the metadata of a checkpoint without its arrays."""
    with _readable(path) as readable:
        return _function("metadata")(readable)


def _function(name: str) -> Callable[..., Any]:
    """Returns one of Orbax's functions `save`, `save_async`, `load` and `metadata`, which it has since 0.12."""
    from orbax.checkpoint import v1 as ocp

    if hasattr(ocp, name):
        return getattr(ocp, name)
    logging.getLogger("absl").addFilter(_is_no_false_alarm)
    return functools.partial(_FORMER[name], ocp)


def _is_no_false_alarm(message: logging.LogRecord) -> bool:
    """Returns False for the warning of Orbax 0.11 that a complete checkpoint has no data files."""
    return "TensorStore data files not found" not in str(message.msg)


# The same before Orbax 0.12, which did not choose the name of the folder that holds the arrays.
_FORMER: dict[str, Callable[..., Any]] = {
    "save": lambda ocp, path, tree, **options: ocp.save_checkpointables(path, {_NAME: tree}, **options),
    "save_async": lambda ocp, path, tree, **options: ocp.save_checkpointables_async(path, {_NAME: tree}, **options),
    "load": lambda ocp, path, abstract: ocp.load_pytree(path, abstract, checkpointable_name=_name_in(path)),
    "metadata": lambda ocp, path: ocp.pytree_metadata(path, checkpointable_name=_name_in(path)),
}


def _name_in(path: Path) -> str | None:
    """Returns the folder of a checkpoint that holds the arrays; None if they are not in a folder of their own."""
    return next((name for name in (_NAME, "pytree", "default") if (path / name / "_METADATA").exists()), None)


@contextlib.contextmanager
def _operation() -> Iterator[None]:
    """Waits for any other operation; others wait until this one is over."""
    with EXCLUSIVE, _quiet(), _uncounted():
        yield


@contextlib.contextmanager
def _uncounted() -> Iterator[None]:
    """Keeps Orbax from counting the bytes that it reads and writes, which it only logs.

    Orbax (0.12.8) asks TensorStore for its metrics in each operation, and TensorStore (0.1.80 to 0.1.86) never frees
    the lists that `experimental_collect_matching_metrics` returns: about 20 objects for each checkpoint. Orbax has no
    option for this, so its function is replaced; where another version has none of this name, it counts.
    """
    try:
        from orbax.checkpoint._src.serialization import tensorstore_utils
    except ImportError:
        tensorstore_utils = None
    counted = getattr(tensorstore_utils, _COUNTER, None)
    if counted is None:
        yield
        return
    setattr(tensorstore_utils, _COUNTER, lambda *args, **kwargs: 0)
    try:
        yield
    finally:
        setattr(tensorstore_utils, _COUNTER, counted)


class _ThreadErrors(logging.Filter):
    """Drops the tracebacks that each of Orbax's threads logs when a save fails."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "_SignalingThread" not in str(record.msg)


_dropped = _ThreadErrors()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Raises the error of an operation, and logs none of Orbax's threads.

    After an error some of its threads still run, so their tracebacks are dropped until another operation succeeds.
    """
    logger = logging.getLogger("absl")
    logger.addFilter(_dropped)
    yield
    logger.removeFilter(_dropped)


def check_place(path: Path) -> None:
    """Checks for a path that Orbax and TensorStore do not change.

    Raises:
        ValueError: for any other path.
    """
    text = os.fspath(path)
    odd = "a backslash, which it treats as a slash" if "\\" in text and os.sep == "/" else ""
    odd = odd or ("" if _is_utf8(text) else "bytes that are not UTF-8, of which all names in TensorStore are")
    odd = odd or ("'gs:' at the end of a name, which it treats as a bucket" if "gs:/" in f"{text}/" else "")
    if odd:
        raise ValueError(f"Orbax cannot write checkpoints to {text!r}: it contains {odd}. Pass another path.")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def local(path: str | Path) -> Any:
    """Returns a path of Orbax's type to a local directory that is neither pattern nor address."""
    check_place(Path(path))
    return _path_type()(path)


@functools.cache
def _path_type() -> type:
    from etils import epath

    class LocalPath(type(epath.Path("."))):
        _uri_scheme = None

        def glob(self, pattern: str) -> Iterator[Any]:
            for found in Path(os.fspath(self)).glob(pattern):
                yield type(self)(found)

    return LocalPath


@contextlib.contextmanager
def _readable(path: str) -> Iterator[Any]:
    """Returns the path under which Orbax can read a checkpoint.

    The index is missing if the checkpoint was saved with a plain path in a directory with brackets in its name. In this
    case a temporary directory is created with links to the files and the missing index; the checkpoint is not modified.
    """
    root = Path(path)
    parts = parts_without_index(root)
    if not parts:
        yield local(path)
        return
    with tempfile.TemporaryDirectory(prefix="jaxcb-") as made:
        _link(root, Path(made), skip=parts)
        for part in parts:
            (Path(made) / part.name).mkdir()
            _link(part, Path(made) / part.name)
            _index(Path(made) / part.name)
        yield local(made)


def parts_without_index(root: Path) -> list[Path]:
    """Returns the parts of a checkpoint whose arrays cannot be found, since there is no index of them."""
    if not root.is_dir():
        return []
    return [p for p in root.iterdir() if p.is_dir() and any(p.glob(_PARTS)) and not (p / _INDEX).exists()]


def _link(source: Path, target: Path, *, skip: Sequence[Path] = ()) -> None:
    """Links every entry of a directory."""
    for path in source.iterdir():
        if path not in skip:
            link_or_copy(path, target / path.name)


def _index(directory: Path) -> None:
    """Creates the index of what each process wrote, as Orbax does at the end of a save."""
    import tensorstore
    from orbax.checkpoint.type_handlers import merge_ocdbt_per_process_files

    context = tensorstore.Context({"cache_pool#ocdbt": {"total_bytes_limit": 100_000_000}})
    merge = merge_ocdbt_per_process_files(local(directory), context, use_zarr3=True, enable_validation=False)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # a notebook already runs an event loop in this thread
        thread.submit(asyncio.run, merge).result()


def _context() -> Any:
    """Returns Orbax's settings.

    With `active_processes`, processes synchronize by JAX's distributed service, otherwise over the devices.
    """
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    if jax.process_count() > 1:
        active = set(range(jax.process_count()))
        object.__setattr__(context.multiprocessing_options, "active_processes", active)  # see `load`
    return context


def _of_all(tree: Any) -> Any:
    """Returns a tree that all processes can save together.

    Arrays that each process has for itself are equal; that of process 0 is saved.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: np.array(x) if isinstance(x, jax.Array) and x.is_fully_addressable else x, tree)
