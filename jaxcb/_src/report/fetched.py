"""Runs and logs in a bucket, fetched into temporary folders that are removed when the process ends.

What a command does not need is not fetched: a file of which only the size is needed is there with that size, as zeros
that take no room on the disk. The arrays of checkpoints are the most of a run.
"""

import atexit
import contextlib
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxcb._src.history.reader import HISTORY
from jaxcb._src.report.checkpoints import Checkpoint
from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.storage.buckets.bucket import Bucket
from jaxcb._src.storage.buckets.download import download, downloaded
from jaxcb._src.storage.buckets.index import MANIFEST, read_index
from jaxcb._src.storage.buckets.lease import is_held
from jaxcb._src.storage.buckets.progress import shown_bytes
from jaxcb._src.utils.address import Address

_TEXTS = (".csv", ".json", ".jsonl", ".ndjson", ".tsv", ".wandb")
_EVENTS = "events.out.tfevents."
_MOST = 1 << 26  # bytes of a checkpoint that is fetched to show states
_FOLDERS = contextlib.ExitStack()  # of this process
atexit.register(_FOLDERS.close)


def is_text(name: str) -> bool:
    """Returns whether a file of a run is a record, a manifest or a log, and no array."""
    return name.endswith(_TEXTS) or name.rpartition("/")[2].startswith(_EVENTS)


def fetch(address: Address, *, whole: bool = False) -> Path:
    """Fetches a run, a log, or a folder of logs.

    Args:
        address: of it.
        whole: whether the arrays of checkpoints are needed, too.

    Returns:
        The path on this machine.

    Raises:
        FileNotFoundError: if nothing is there.
        OSError: for requests that fail.
        ImportError: without the package obstore.
    """
    return _FOLDERS.enter_context(
        downloaded(address, choose=list if whole else lambda names: filter(is_text, names), sizes=not whole)
    )


def fetch_runs(address: Address) -> tuple[Path, dict[Path, Callable[[], bool]]]:
    """Fetches the records and histories of all runs below an address.

    Returns:
        A folder with a folder for each run, and functions that find out whether it is being trained.

    Raises:
        FileNotFoundError: if there is no object at all.
        OSError: for requests that fail.
        ImportError: without the package obstore.
    """
    names = Bucket(address).list()
    if not names:
        raise FileNotFoundError(f"there is nothing at {address}, expected runs below it.")
    folder, running = Path(_FOLDERS.enter_context(tempfile.TemporaryDirectory(prefix="jaxcb-"))), {}
    for root in sorted(name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == MANIFEST):
        of_run = functools.reduce(lambda at, part: at / part, filter(None, root.split("/")), address)
        bucket, place = Bucket(of_run), folder / root
        place.mkdir(parents=True, exist_ok=True)
        index = read_index(bucket)
        download(bucket, {n: e for n, e in index.files.items() if is_text(n)}, place, say=_silent)
        running[place] = functools.partial(is_held, bucket)
    return folder, running


def fetch_history(run: RunFolder) -> None:
    """Fetches the history of a run again, into its file: what reads the file has its place in it."""
    assert run.address is not None
    with downloaded(run.address, choose=lambda names: [name for name in names if name == HISTORY]) as folder:
        if (folder / HISTORY).is_file():
            (run.path / HISTORY).write_bytes((folder / HISTORY).read_bytes())


def fetch_arrays(run: RunFolder, checkpoint: Checkpoint) -> str:
    """Fetches the arrays of a checkpoint, if they are not too large; returns why not."""
    if run.address is None:
        return ""
    if checkpoint.bytes > _MOST:
        return f"they are in a checkpoint of {shown_bytes(checkpoint.bytes)} in a bucket, which is not fetched"
    name = checkpoint.path.relative_to(run.path).as_posix()
    with downloaded(run.address, choose=lambda files: [n for n in files if n.startswith(f"{name}/")]) as folder:
        shutil.copytree(folder / name, checkpoint.path, dirs_exist_ok=True)
    return ""


def is_written(address: Address) -> bool:
    """Returns whether a process seems to write to a run."""
    return is_held(Bucket(address))


def whole(run: RunFolder) -> RunFolder:
    """Returns a run with all its files: one in a bucket is fetched."""
    if run.address is None:
        return run
    return RunFolder(fetch(run.address, whole=True), address=run.address, is_running=run.is_running)


@contextlib.contextmanager
def to_change(run: RunFolder) -> Iterator[RunFolder]:
    """Yields a run whose files may be changed: one in a bucket takes its lease, and is uploaded at the end.

    Raises:
        RuntimeError: if another process writes to it.
        OSError: for requests that fail.
    """
    if run.address is None:
        yield run
        return
    from jaxcb._src.checkpointing.bucket_run import bucket_run
    from jaxcb._src.distributed.processes import SINGLE_PROCESS

    given = {"local_dir": None, "may_exist": True, "on_error": "raise", "processes": SINGLE_PROCESS, "say": _silent}
    with bucket_run(run.address, **given) as place:  # pyright: ignore[reportArgumentType]
        yield RunFolder(place.directory, address=run.address, is_running=False)


def _silent(text: str) -> None:
    del text
