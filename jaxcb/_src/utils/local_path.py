"""Checks of path arguments."""

import os
import re
from pathlib import Path
from typing import Any

# `str(Path("gs://bucket"))` has one slash. One letter is a drive on Windows.
_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.\-]+):[/\\]")


def path_text(owner: str, name: str, value: Any) -> str:
    """Checks for a local path, and returns it as text without changes.

    Args:
        owner: function or class of the argument, for the error.
        name: the argument's name.
        value: the argument.

    Returns:
        The path as text, relative if it was relative.

    Raises:
        TypeError: for a value that is not a path.
        ValueError: for an empty string, an address such as `gs://bucket/run`, a zero byte, or an unknown `~user`.
    """
    # use `str` first: `os.fspath` of a cloud path may download it
    shown = str(value) if isinstance(value, str | os.PathLike) else value
    if isinstance(shown, str) and (address := _ADDRESS.match(shown)):
        raise ValueError(
            f"{owner}: {name} is {shown!r}, an address ({address[1]}:). Buckets and other addresses are not "
            "supported yet: pass the path of a local folder or file, and copy it yourself."
        )
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{owner}: {name} must be a path, got {value!r}; pass a str or a pathlib.Path.")
    if not text:
        raise ValueError(f"{owner}: {name} is an empty string, expected a path; '.' is the working directory.")
    if "\0" in text:
        raise ValueError(f"{owner}: {name} is {text!r}, which contains a zero byte; file names cannot contain one.")
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise ValueError(
            f"{owner}: {name} is {text!r}, but the home directory of {Path(text).parts[0]!r} is not known. For a "
            f"folder of that name pass './{text}'."
        )
    return text


def working_directory() -> Path:
    """Returns the working directory; a relative path if it was removed, so that only relative paths fail then."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path()


def local_path(owner: str, name: str, value: Any, *, below: Path | None = None) -> Path:
    """Checks for a local path, and returns it as an absolute path.

    Args:
        owner: function or class of the argument, for the error.
        name: the argument's name.
        value: the argument.
        below: base of a relative path; None for the working directory.

    Returns:
        The absolute path, with `~` expanded.

    Raises:
        TypeError: for a value that is not a path.
        ValueError: for an empty string, an address such as `gs://bucket/run`, a zero byte, or an unknown `~user`.
    """
    path = Path(os.path.expanduser(path_text(owner, name, value)))
    return (path if below is None else below / path).absolute()
