"""Event files for TensorBoard, in tensorboardX's format: scalars, histograms, images and texts."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from jaxcb._actions import Histogram, Image, Scalars, Text, fill
from jaxcb.writers._event_file import EventFile, event_files
from jaxcb.writers._location import check_writable
from jaxcb.writers._writer import Writer, by_member


class TensorBoardWriter(Writer):
    """Writes event files, a directory a run; members of a population have a series each, `tag/member`."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._files: dict[tuple[str, str], EventFile] = {}
        self._directories: set[Path] = set()
        self._others: set[str] = set()  # event files that were there before this run began

    def prepare(self, action: Any) -> None:
        directory = self._directory(action)
        if directory not in self._directories:
            check_writable(directory, "TensorBoard's event files")
            self.context.files.append(directory)
            self._directories.add(directory)
            self._others |= {self.context.key(path) for path in event_files(directory)}
        if isinstance(action, Image) and importlib.util.find_spec("PIL") is None:
            raise ImportError(f"{action.owner} writes images, which needs Pillow: pip install pillow.")

    def _directory(self, action: Any) -> Path:
        return self.context.path(f"{action.log_dir}/{action.run}")

    def _file(self, action: Any) -> EventFile:
        """The open event file of the action's run; made when something is written, so that it is always closed."""
        run = (action.log_dir, action.run)
        if run not in self._files:
            self._files[run] = EventFile(self._directory(action))
        return self._files[run]

    def write(self, record: Any) -> None:
        step = record.epoch if record.action.by == "epoch" else record.step
        for member, action in by_member(record.action):
            suffix = "" if member is None else f"/{member}"
            match action:
                case Scalars():
                    found = _scalars(action, suffix)
                case Histogram():
                    found = _histogram(action.tag + suffix, action)
                case Image():
                    form = "HW" if action.image.ndim == 2 else "HWC"
                    found = summary.image(action.tag + suffix, action.image, dataformats=form)
                case Text():
                    text = fill(action, step=record.step, epoch=record.epoch, batch=record.batch)
                    found = summary.text(action.tag + suffix, text)
                case _:
                    raise TypeError(
                        f"TensorBoard has no place for a {type(action).__name__}. Register a writer for it: "
                        f"@jc.writer({type(action).__name__})."
                    )
            if found is not None:
                self._file(action).add_summary(found, step)

    def tick(self, status: Any) -> None:
        for file in self._files.values():
            file.tick()

    def position(self) -> Any:
        for file in self._files.values():
            file.sync()
        sizes: dict[str, int] = {}
        for directory in self._directories:
            found = {self.context.key(path): path.stat().st_size for path in event_files(directory)}
            sizes |= {key: size for key, size in found.items() if key not in self._others}
        return {"sizes": sizes, "others": sorted(self._others)}

    def restore(self, position: Any) -> None:
        """Cuts event files back to what had been written, and removes those that began later."""
        self._others = set(position["others"])
        for directory in self._directories:
            for path in event_files(directory):
                key = self.context.key(path)
                if key in position["sizes"]:
                    os.truncate(path, position["sizes"][key])
                elif key not in self._others:
                    path.unlink()

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()


def _scalars(action: Scalars, suffix: str) -> Any:
    """One event for all of them; None where nothing is new."""
    fresh, found = action.fresh, Summary()
    for name, value in action.values.items():
        if fresh is None or fresh[name]:
            found.value.add(tag=name + suffix, simple_value=value)
    return found if found.value else None


def _histogram(tag: str, action: Histogram) -> Any:
    return summary.histogram_raw(
        tag,
        min=float(action.low),
        max=float(action.high),
        num=int(np.sum(action.counts)),
        sum=float(action.total),
        sum_squares=float(action.squares),
        # a bucket has a right limit only: an empty one in front gives the first its left
        bucket_limits=np.asarray(action.limits, np.float64).tolist(),
        bucket_counts=[0, *np.asarray(action.counts).tolist()],
    )
