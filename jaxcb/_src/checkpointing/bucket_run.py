"""`BucketRun`: a run whose directory is in a bucket. It works in a local folder, which is copied to the bucket."""

import contextlib
import hashlib
import json
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxcb._src.checkpointing.lock import lock_run_dir
from jaxcb._src.distributed.processes import Processes
from jaxcb._src.storage import orbax as _orbax
from jaxcb._src.storage.buckets import lease as _lease
from jaxcb._src.storage.buckets.bucket import PATIENCE_SECONDS, Bucket
from jaxcb._src.storage.buckets.download import restore
from jaxcb._src.storage.buckets.index import Index, read_index
from jaxcb._src.storage.buckets.lease import Lease, LeaseLostError
from jaxcb._src.storage.buckets.mirror import Mirror
from jaxcb._src.storage.buckets.snapshot import MARK, OUTGOING, Limit
from jaxcb._src.storage.ownership import FOLDER
from jaxcb._src.utils.address import Address
from jaxcb._src.utils.platforms import cache_directory

_SHARED = f"{FOLDER}/shared"  # a file by which other processes see that they share the local folder


class BucketRun:
    """The directory of a run in a bucket, while the run writes to it. Process 0 has one.

    Args:
        bucket: the address of the run.
        lease: of this process, acquired.
        directory: the local folder, equal to the mirrored one.
        mirror: of the folder.
        on_error: "raise" or "warn" if an upload fails.
    """

    def __init__(self, bucket: Bucket, lease: Lease, directory: Path, mirror: Mirror, on_error: str) -> None:
        self.bucket, self.directory = bucket, directory
        self._lease, self._mirror, self._on_error = lease, mirror, on_error
        self._warned = False

    def announce(self) -> None:
        """Copies the run's record before the first step, and waits for it.

        Trackers know the run by the id in it: if the machine vanishes before the first save, the next one continues the
        same run there.

        Raises:
            LeaseLostError: if another process has taken the bucket over.
            OSError: for an upload that failed, if that is to be raised.
        """
        self._mirror.save({})
        self._mirror.wait()
        self.check()

    def save(self, checkpoint: Path, facts: Mapping[str, Any]) -> None:
        """Begins to copy a complete checkpoint, with each log up to where it was at the checkpoint.

        Args:
            checkpoint: its directory.
            facts: its metadata.
        """
        run_dir = checkpoint.parent.parent.relative_to(self.directory)  # of a part of a sweep below the folder
        limits = {}
        for name, position in (facts.get("files") or {}).items():
            if isinstance(position, dict) and {"bytes", "checksum"} <= position.keys():
                limits[(run_dir / name).as_posix()] = Limit(position["bytes"], position["checksum"])
        self._mirror.save(limits)

    @property
    def failed(self) -> bool:
        """Whether another process has taken the bucket over, or an upload has failed."""
        return self._mirror.failed

    def check(self) -> None:
        """Reports what went wrong in the background.

        Raises:
            LeaseLostError: if another process has taken the bucket over.
            OSError: for an upload that failed, if that is to be raised.
        """
        try:
            self._mirror.check()
        except LeaseLostError:
            raise
        except Exception as error:
            if self._on_error == "raise":
                raise
            if not self._warned:
                self._warned = True
                _warn(f"{error} The run continues in {self.directory}, and later saves try again.")
        else:
            self._warned = False

    def finish(self) -> None:
        """Copies what the run has written since its last checkpoint, after all its files were closed.

        Raises:
            LeaseLostError: if another process has taken the bucket over.
            OSError: for an upload that fails.
        """
        self._mirror.wait()
        with contextlib.suppress(OSError):  # of an earlier upload: this one has all that it had
            self._mirror.check()
        self._mirror.save({})
        self._mirror.wait()
        if not self._mirror.failed and self._mirror.changed_in_place():
            self._mirror.save({})
            self._mirror.wait()
        self._mirror.check()

    def close(self) -> None:
        """Ends all work in the background, and lets another process have the bucket."""
        self._mirror.stop()
        self._lease.release()


class RunPlace:
    """The local folder of a run in a bucket, on any process.

    Attributes:
        address: of the run.
        directory: the local folder.
        primary: the run in the bucket, on process 0; None on others.
    """

    def __init__(self, address: Address, directory: Path, primary: BucketRun | None) -> None:
        self.address, self.directory, self.primary = address, directory, primary

    def address_of(self, directory: Path | None) -> Address | None:
        """Returns the address of a folder in the local folder."""
        if directory is None or not directory.is_relative_to(self.directory):
            return None
        name = directory.relative_to(self.directory).as_posix()
        return self.address if name == "." else self.address / name


@contextlib.contextmanager
def bucket_run(
    address: Address,
    *,
    local_dir: Path | None,
    may_exist: bool,
    on_error: str,
    processes: Processes,
    say: Callable[[str], None],
) -> Iterator[RunPlace]:
    """Opens the directory of a run in a bucket: takes its lease, and makes the local folder equal to it.

    At the end all is uploaded, and the lease is released, however the run ends.

    Args:
        address: of the run.
        local_dir: the local folder; None for one in the user's cache.
        may_exist: whether a run may be there, which is resumed or replaced.
        on_error: "raise" or "warn" if an upload fails.
        processes: of the run, which share the local folder.
        say: prints a line.

    Raises:
        FileExistsError: if a run is there that may not, or if the local folder has files of something else.
        FileNotFoundError: if there is no such bucket.
        PermissionError: if it may not be read or written.
        RuntimeError: if another run uses it.
        ImportError: if obstore is missing.
        OSError: for a store that does not answer.
    """
    directory = local_folder(address) if local_dir is None else local_dir
    with contextlib.ExitStack() as stack:
        opened: list[BucketRun] = []

        def open_and_share() -> tuple[str, str]:
            opened.append(_open(stack, address, directory, may_exist, on_error, say))
            token = secrets.token_hex(8)
            if processes.is_multiprocess:
                (directory / _SHARED).write_text(token)
            return str(directory), token

        place, token = processes.broadcast_from_primary(open_and_share)
        _check_shared(address, Path(place), token, processes)
        primary = opened[0] if opened else None
        try:
            yield RunPlace(address, Path(place), primary)
        except BaseException as error:
            if place in str(error):
                error.add_note(f"{place} is the local folder of {address}.")
            _finish(primary, error, on_error)
            raise
        _finish(primary, None, on_error)


def _open(
    stack: contextlib.ExitStack,
    address: Address,
    directory: Path,
    may_exist: bool,
    on_error: str,
    say: Callable[[str], None],
) -> BucketRun:
    """Opens a run on process 0."""
    bucket = Bucket(address)
    found = read_index(bucket)
    _refuse_existing(address, found, may_exist)
    _check_folder(address, directory)
    lease = Lease(bucket, seconds=_lease.SECONDS, say=say)
    lease.acquire(0 if found.manifest is None else found.manifest.lease)
    mirror = Mirror(bucket, lease, directory, say=say)
    run = BucketRun(bucket, lease, directory, mirror, on_error)
    stack.callback(run.close)
    lease.keep()
    stack.enter_context(lock_run_dir(directory))  # the lease says by whom it is in use, so it comes first
    _mark_folder(address, directory)
    mirror.open()
    _refuse_existing(address, mirror.index, may_exist)  # another run may have ended in the meantime
    mirror.know(restore(bucket, mirror.index, directory, say=say))
    mirror.start()
    bucket.patience = PATIENCE_SECONDS
    say(f"jaxcb: the run at {address} is in {directory} on this machine.")
    return run


def _finish(run: BucketRun | None, failed: BaseException | None, on_error: str) -> None:
    """Uploads the rest. An error of the run is not replaced by one of the upload."""
    if run is None:
        return
    try:
        run.finish()
    except (OSError, LeaseLostError) as error:
        rest = f"{error} The run's files are in {run.directory}; resume=True with the same arguments needs them there."
        if failed is not None:
            if failed is not error:
                failed.add_note(f"The end of the run is not in the bucket: {error}")
        elif isinstance(error, LeaseLostError) or on_error == "raise":
            raise
        else:
            _warn(rest)


def local_folder(address: Address) -> Path:
    """Returns the folder in the user's cache for a run at an address."""
    name = hashlib.sha256(str(address).encode()).hexdigest()[:16]
    return cache_directory() / "jaxcb" / "runs" / name


def _refuse_existing(address: Address, index: Index, may_exist: bool) -> None:
    if index.files and not may_exist:
        raise FileExistsError(
            f"{address} already holds a run. Pass resume=True to resume it, "
            "checkpointing=jc.Checkpointing(overwrite=True) to replace it, or another run_dir."
        )


def _check_folder(address: Address, directory: Path) -> None:
    """Refuses a local folder that has files of something else: it is made equal to the bucket.

    Raises:
        FileExistsError: it says what to do.
        ValueError: for a path that Orbax would change.
    """
    _orbax.check_place(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    known: Any = None
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((directory / MARK).read_text(encoding="utf-8"))
    if not isinstance(known, dict) or known.get("address") != str(address):
        of = f", the local folder of {known.get('address')}" if isinstance(known, dict) else ""
        raise FileExistsError(
            f"{directory} is not empty{of}, and is not the local folder of {address}, to which it would be made equal. "
            "Pass an empty folder as checkpointing=jc.Checkpointing(local_dir=...), or move what is there."
        )


def _mark_folder(address: Address, directory: Path) -> None:
    (directory / FOLDER).mkdir(exist_ok=True)
    (directory / MARK).write_text(json.dumps({"address": str(address)}), encoding="utf-8")
    shutil.rmtree(directory / OUTGOING, ignore_errors=True)


def _check_shared(address: Address, directory: Path, token: str, processes: Processes) -> None:
    """Checks that a process sees the files of process 0: the arrays of all processes are written to one folder."""
    if processes.is_primary:
        return
    with contextlib.suppress(OSError):
        if (directory / _SHARED).read_text() == token:
            return
    raise RuntimeError(
        f"process {processes.index} does not see {directory}, the local folder of {address} on process 0. The "
        "processes of a run write its arrays to one folder: pass one on a disk that they share as "
        "checkpointing=jc.Checkpointing(local_dir=...)."
    )


def _warn(text: str) -> None:
    warnings.warn(f"jaxcb: {text}", RuntimeWarning, stacklevel=3)
