"""Paths as a user gives them: one check for every argument that is one."""

import os
import re
from pathlib import Path
from typing import Any

# `Path("gs://bucket")` has one slash left. A drive of Windows has one letter.
_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.\-]+):[/\\]")


def path_text(owner: str, name: str, value: Any) -> str:
    """Requires the path of something on this machine, and returns its text as it was given.

    Args:
        owner: whose argument it is, for the error: a function or a class.
        name: the argument's name.
        value: what was given.

    Returns:
        The path as text, still relative where it was.

    Raises:
        TypeError: for what is no path.
        ValueError: for an empty text, an address such as `gs://bucket/run`, a zero byte, and an unknown `~user`.
    """
    # the text of the object itself comes first: `os.fspath` of a path in a cloud may download it
    shown = str(value) if isinstance(value, str | os.PathLike) else value
    if isinstance(shown, str) and (address := _ADDRESS.match(shown)):
        raise ValueError(
            f"{owner}: {name} is {shown!r}, an address ({address[1]}:). Buckets and other addresses are not "
            "served yet: pass the path of a local folder or file, and copy it there or from there yourself."
        )
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(f"{owner}: {name} must be a path, got {value!r}; pass a str or a pathlib.Path.")
    if not text:
        raise ValueError(f"{owner}: {name} is an empty text, expected a path; '.' is the working directory.")
    if "\0" in text:
        raise ValueError(f"{owner}: {name} is {text!r}, which holds a zero byte; no file has such a name.")
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise ValueError(
            f"{owner}: {name} is {text!r}, but the home directory of {Path(text).parts[0]!r} is not known. For a "
            f"folder of that name pass './{text}'."
        )
    return text


def working_directory() -> Path:
    """Returns the working directory; a relative path where it was removed, so that only relative paths fail then."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path()


def local_path(owner: str, name: str, value: Any, *, below: Path | None = None) -> Path:
    """Requires the path of something on this machine, and returns it as an absolute one.

    Args:
        owner: whose argument it is, for the error: a function or a class.
        name: the argument's name.
        value: what was given.
        below: where a relative path begins; the working directory where None.

    Returns:
        The absolute path; `~` stands for the home directory.

    Raises:
        TypeError: for what is no path.
        ValueError: for an empty text, an address such as `gs://bucket/run`, a zero byte, and an unknown `~user`.
    """
    path = Path(os.path.expanduser(path_text(owner, name, value)))
    return (path if below is None else below / path).absolute()
