"""What ran: the commit, command, versions, devices, host and data of a process, for the run's records and trackers."""

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxcb._src.utils.local_path import working_directory
from jaxcb._src.utils.secrets import mask_command

_PACKAGES = ("jaxcb", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "equinox", "grain")
_GIT_SECONDS = 10.0


def what_ran(data: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describes the process, as JSON. It contains no environment variables, and secrets in the command are masked.

    Args:
        data: length and fingerprint of the training data; None if they are not known.

    Returns:
        `began` (UTC), `command`, `commit` and `dirty` (whether files under version control had changed; both None
        outside of a git repository), `python`, `versions`, `devices`, `host`, `system` and `data`.

    Example:
        >>> sorted(what_ran())
        ['began', 'command', 'commit', 'data', 'devices', 'dirty', 'host', 'python', 'system', 'versions']
    """
    commit, dirty = _commit()
    return {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": mask_command(sys.argv),
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "devices": _devices(),
        "host": platform.node(),
        "system": platform.platform(),
        "data": None if data is None else dict(data),
    }


def _devices() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processes": jax.process_count(),
    }


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _commit() -> tuple[str | None, bool | None]:
    """Returns the commit of the program, or else of the working directory."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    program = None if main is None else Path(main).absolute().parent
    for directory in (program, working_directory()):
        if directory is not None and (found := _commit_in(directory))[0] is not None:
            return found
    return None, None


@functools.cache  # a process runs the code that it has imported, so the first answer holds
def _commit_in(directory: Path) -> tuple[str | None, bool | None]:
    git = shutil.which("git")
    if git is None or not any((place / ".git").exists() for place in (directory, *directory.parents)):
        return None, None
    command = [git, "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # an optional lock could disturb a git command of the user
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_SECONDS, env=environment, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no commit yet, a repository of another user...
        return None, None
    commit, dirty, _ = answer.stdout.strip().partition("-dirty")
    return commit, bool(dirty)
