"""Addresses of objects in a bucket, such as `s3://bucket/runs/a`."""

import os
import re
from dataclasses import dataclass
from typing import Any

SCHEMES = {"s3": "Amazon S3 and compatible stores", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
# `str(Path("gs://bucket"))` has one slash. One letter is a drive on Windows.
_ADDRESS = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.\-]+):([/\\]+)(.*)", re.DOTALL)
_PARENT = re.compile(r"\.{1,2}")


@dataclass(frozen=True)
class Address:
    """A place in a bucket.

    Args:
        scheme: one of `SCHEMES`.
        bucket: name of the bucket, for Azure of the container.
        key: names below the bucket with slashes between them; empty for the bucket itself.
    """

    scheme: str
    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.key}" if self.key else "")

    def __truediv__(self, name: str) -> "Address":
        """Returns the address of a name below this one."""
        return Address(self.scheme, self.bucket, f"{self.key}/{name}" if self.key else name)

    @property
    def parents(self) -> list["Address"]:
        """The addresses above it, the nearest first and the bucket last."""
        parts = self.key.split("/") if self.key else []
        return [Address(self.scheme, self.bucket, "/".join(parts[:n])) for n in reversed(range(len(parts)))]

    @property
    def parent(self) -> "Address":
        """The address above it; that of the bucket itself is its own."""
        return next(iter(self.parents), self)

    def below(self, other: "Address") -> str | None:
        """Returns the names that lead here from another address; None if this one is not below it."""
        if (self.scheme, self.bucket) != (other.scheme, other.bucket):
            return None
        if not other.key or self.key == other.key:
            return self.key if not other.key else ""
        return self.key[len(other.key) + 1 :] if self.key.startswith(f"{other.key}/") else None


def parse_address(owner: str, name: str, value: Any) -> Address | None:
    """Returns the address in an argument; None if it is something else, such as a path.

    Args:
        owner: function or class of the argument, for the error.
        name: the argument's name.
        value: the argument.

    Raises:
        ValueError: for an address that no store serves, without a bucket, or with names that a store changes.
    """
    # use `str` first: `os.fspath` of a cloud path may download it
    text = str(value) if isinstance(value, str | os.PathLike) else None
    found = None if text is None else _ADDRESS.match(text)
    if text is None or found is None:
        return None
    scheme, _, rest = found.groups()
    shown = f"{owner}: {name} is {text!r}, an address ({scheme}:)"
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}:// ({what})" for known, what in SCHEMES.items())
        raise ValueError(
            f"{shown} that no store serves. Pass the path of a local folder or file, or an address of {known}."
        )
    if found[2] != "//":
        raise ValueError(
            f"{shown}, but without '//' after the scheme; pathlib.Path removes one slash. Pass a str such as "
            f"'{scheme}://bucket/run'."
        )
    bucket, _, key = rest.rstrip("/").partition("/")
    if not bucket:
        raise ValueError(f"{shown} without the name of a bucket. Pass one such as '{scheme}://bucket/run'.")
    parts = key.split("/") if key else []
    odd = [p for p in parts if not p or _PARENT.fullmatch(p) or "\\" in p or not p.isprintable()]
    if odd or not bucket.isprintable():
        raise ValueError(
            f"{shown} with the name {(odd or [bucket])[0]!r} in it. Names must not be empty, '.' or '..', or contain a "
            "backslash or a control character."
        )
    return Address(scheme, bucket, key)
