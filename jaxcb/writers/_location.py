"""Places on the disk: whether one can be written, before a run begins."""

import tempfile
from pathlib import Path


def check_writable(directory: Path, what: str) -> None:
    """Raises an error where `directory` cannot be made or written; leaves nothing there.

    Args:
        directory: it need not exist yet.
        what: is to be written there, for the error.

    Raises:
        OSError: of the kind that writing would raise.
    """
    try:
        there = next(p for p in (directory, *directory.parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"cannot write {what}: {error.strerror}", str(directory)) from None
