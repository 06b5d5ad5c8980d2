"""`Profile` actions: `jax.profiler`."""

import shutil
from pathlib import Path
from typing import Any

import jax

from jaxcb.writers._location import check_writable
from jaxcb.writers._writer import Writer


class ProfileWriter(Writer):
    """Profiles lie in `plugins/profile` of their directory, each in one of its own, named by its time."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._rooms: set[Path] = set()
        self._others: dict[str, list[str]] = {}  # profiles that were there before this run began
        self._under_way: Path | None = None

    def prepare(self, action: Any) -> None:
        directory = self.context.path(action.log_dir)
        if directory not in self._rooms:
            check_writable(directory, "profiles")
            self._rooms.add(directory)
            self.context.files.append(_room(directory))
            self._others[self.context.key(directory)] = [room.name for room in _profiles(directory)]

    def write(self, record: Any) -> None:
        if record.action.begins:
            self._begin(self.context.path(record.action.log_dir))
        else:
            self._end()

    def _begin(self, directory: Path) -> None:
        if self._under_way is not None:
            return
        try:
            jax.profiler.start_trace(str(directory))
        except RuntimeError as error:
            raise RuntimeError(
                f"the profiler cannot be started: {error} JAX has one for all of the process; end the other first."
            ) from None
        self._under_way = directory

    def _end(self) -> None:
        if self._under_way is not None:
            self._under_way = None
            jax.profiler.stop_trace()

    def position(self) -> Any:
        made = {self.context.key(directory): [p.name for p in _profiles(directory)] for directory in self._rooms}
        under_way = None if self._under_way is None else self.context.key(self._under_way)
        return {"kept": made, "others": self._others, "under_way": under_way}

    def restore(self, position: Any) -> None:
        """Removes the profiles that were made later; one that was under way begins again."""
        self._others = position["others"]
        for directory in self._rooms:
            key = self.context.key(directory)
            if key not in position["kept"]:
                continue
            for room in _profiles(directory):
                if room.name not in (*position["kept"][key], *self._others.get(key, ())):
                    shutil.rmtree(room)
            if key == position["under_way"]:
                self._begin(directory)

    def close(self) -> None:
        self._end()


def _profiles(directory: Path) -> list[Path]:
    return sorted(_room(directory).glob("*"))


def _room(directory: Path) -> Path:
    return directory / "plugins" / "profile"
