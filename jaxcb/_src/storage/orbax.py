"""Orbax, one operation at a time.

Orbax (0.12) numbers its operations in one counter of the process, by which a save finds its own directories: a second
save or load beside it makes it look for those of the other one.

All processes of a run take part in each operation, and begin it at the same place, with no step under way: Orbax (0.12)
compares the path on the devices when a save begins. What it does in the background is done without them.

Every path goes to Orbax as `local` makes it. Orbax's own kind (etils 1.15) takes `[`, `*` and `?` in the name of a
folder for a pattern when it lists the folder: a save in `lr=[0.1]` did not find the arrays that it had just written,
and wrote no index of them. It also takes `/gs/x` for a bucket.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

_PARTS = "ocdbt.process_*"  # what each process wrote of the arrays
_INDEX = "manifest.ocdbt"  # of the arrays of all processes

EXCLUSIVE = threading.Lock()  # held from the beginning of an operation until all of it is on the disk


def save_async(path: str, tree: Any, **options: Any) -> Callable[[], None]:
    """Begins a save once no other operation is under way, and returns when the arrays may change.

    Returns:
        A function that waits until it is on the disk; it must be called, from any thread.
    """
    from orbax.checkpoint import v1 as ocp

    EXCLUSIVE.acquire()
    try:
        with _context():
            response = ocp.save_async(local(path), _of_all(tree), **options)
    except BaseException:
        EXCLUSIVE.release()
        raise

    def finish() -> None:
        try:
            response.result()
        finally:
            EXCLUSIVE.release()

    return finish


def save(path: str, tree: Any, **options: Any) -> None:
    """Saves once no other operation is under way, and waits until it is on the disk."""
    from orbax.checkpoint import v1 as ocp

    with EXCLUSIVE, _context():
        ocp.save(local(path), _of_all(tree), **options)


def load(path: str, abstract: Any, **options: Any) -> Any:
    """Loads once no other operation is under way.

    Args:
        path: what to load.
        abstract: what is wanted of it.
        **options: of Orbax's `pytree_options.loading`.
    """
    from orbax.checkpoint import v1 as ocp

    context = _context()
    for name, value in options.items():
        setattr(context.pytree_options.loading, name, value)
    with EXCLUSIVE, context, _readable(path) as readable:
        return ocp.load(readable, abstract)


def metadata(path: str) -> Any:
    """Returns what a checkpoint says of itself, without its arrays."""
    from orbax.checkpoint import v1 as ocp

    with _readable(path) as readable:
        return ocp.metadata(readable)


def check_place(path: Path) -> None:
    """Requires a folder that Orbax and TensorStore can write in.

    Raises:
        ValueError: for a path that they would change into another one.
    """
    text = os.fspath(path)
    odd = "a backslash, which it takes for a slash" if "\\" in text and os.sep == "/" else ""
    odd = odd or ("'gs:' at the end of a name, which it takes for a bucket" if "gs:/" in f"{text}/" else "")
    if odd:
        raise ValueError(f"Orbax can keep no checkpoints in {text!r}: there is {odd}. Give another path.")


def local(path: str | Path) -> Any:
    """Returns a path of Orbax's kind to a local folder, whose name is a name and no pattern or address."""
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
    """Gives the path under which Orbax can read a checkpoint.

    Its arrays have no index where it was saved with a plain path in a folder with brackets in its name. Then this is a
    temporary folder of links to what is there, with the index that is missing; the checkpoint itself is not changed.
    """
    root = Path(path)
    parts = [p for p in root.glob("*/") if any(p.glob(_PARTS)) and not (p / _INDEX).exists()] if root.is_dir() else []
    if not parts:
        yield local(path)
        return
    with tempfile.TemporaryDirectory(prefix="jaxcb-") as made:
        _link(root, Path(made), besides=parts)
        for part in parts:
            (Path(made) / part.name).mkdir()
            _link(part, Path(made) / part.name)
            _index(Path(made) / part.name)
        yield local(made)


def _link(source: Path, target: Path, *, besides: Sequence[Path] = ()) -> None:
    """Makes a link to each thing in a folder."""
    for path in source.iterdir():
        if path not in besides:
            (target / path.name).symlink_to(path.absolute(), target_is_directory=path.is_dir())


def _index(directory: Path) -> None:
    """Makes the index of what each process wrote, as Orbax does at the end of a save."""
    import tensorstore
    from orbax.checkpoint.type_handlers import merge_ocdbt_per_process_files

    context = tensorstore.Context({"cache_pool#ocdbt": {"total_bytes_limit": 100_000_000}})
    merge = merge_ocdbt_per_process_files(local(directory), context, use_zarr3=True, enable_validation=False)
    with concurrent.futures.ThreadPoolExecutor(1) as apart:  # a notebook has a loop of its own in this thread
        apart.submit(asyncio.run, merge).result()


def _context() -> Any:
    """Orbax's settings. Processes that are named meet in JAX's distributed service; else it would be on the devices."""
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    if jax.process_count() > 1:
        context.multiprocessing_options.active_processes = set(range(jax.process_count()))
    return context


def _of_all(tree: Any) -> Any:
    """A tree that several processes save together: of arrays that each has for itself, all alike, process 0's."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: np.array(x) if isinstance(x, jax.Array) and x.is_fully_addressable else x, tree)
