"""Checks of path arguments."""

import os
from pathlib import Path
from typing import Any

from jaxcb._src.utils.address import Address, parse_address


def path_text(owner: str, name: str, value: Any, *, buckets: bool = True) -> str:
    """Checks for a local path or the address of a bucket, and returns it as text without changes.

    Args:
        owner: function or class of the argument, for the error.
        name: the argument's name.
        value: the argument.
        buckets: whether an address such as `s3://bucket/run` is accepted.

    Returns:
        The path as text, relative if it was relative.

    Raises:
        TypeError: for a value that is not a path.
        ValueError: for an empty string, an address that is not supported, a zero byte, or an unknown `~user`.
    """
    address = parse_address(owner, name, value)
    if address is not None:
        if not buckets:
            raise ValueError(
                f"{owner}: {name} is {str(value)!r}, an address ({address.scheme}:), and must be on this machine. Pass "
                "the path of a local folder or file."
            )
        return str(address)
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
    path = Path(os.path.expanduser(path_text(owner, name, value, buckets=False)))
    return (path if below is None else below / path).absolute()


def local_path_or_address(owner: str, name: str, value: Any) -> Path | Address:
    """Returns the address of a bucket, or the absolute path of anything else; arguments and errors as `local_path`."""
    return parse_address(owner, name, value) or local_path(owner, name, value)


def link_out_of(directory: Path, path: Path) -> Path | None:
    """Returns the link by which a path below a directory leads out of it; None if there is none.

    Args:
        directory: the directory, which may itself be a link.
        path: a path, which need not exist. One that is not below the directory, or that leaves it by `..`, leads to
            where its author wants, and not where a link leads.
    """
    if not path.is_relative_to(directory):
        return None
    names = path.relative_to(directory).parts
    for number in range(1, 0 if ".." in names else len(names) + 1):
        place = directory.joinpath(*names[:number])
        if place.is_symlink() and not place.resolve().is_relative_to(directory.resolve()):
            return place
    return None


def check_no_link_out(directory: Path, path: Path) -> None:
    """Checks that what is written to a path below a directory stays there.

    The directory may be a stranger's, whose links must not lead a run to files elsewhere.

    Raises:
        ValueError: for a path that leads out of the directory by a link.
    """
    link = link_out_of(directory, path)
    if link is not None:
        raise ValueError(
            f"{link} is a link that leads out of the run's directory, to {os.path.realpath(link)}; nothing is written "
            "there. Replace it by what it leads to, or pass that path itself."
        )
