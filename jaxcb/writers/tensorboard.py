"""Event files for TensorBoard, with tensorboardX: scalars, histograms, images and texts."""

import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxcb._actions import Histogram, Image, Scalars, Text, fill
from jaxcb.writers._location import check_writable
from jaxcb.writers._writer import Writer, by_member

_QUEUE = 1000  # events; with a short queue each one waits for the disk
_FLUSH_SECS = 10  # so that curves are seen while they grow


class TensorBoardWriter(Writer):
    """Writes below `logs`, a directory a run; members of a population have a series each, `tag/member`."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._files: dict[str, Any] = {}
        self._directories: set[Path] = set()
        self._others: set[str] = set()  # event files that were there before this run began

    def prepare(self, action: Any) -> None:
        directory = self._directory(action)
        if directory not in self._directories:
            check_writable(directory, "TensorBoard's event files")
            self.context.files.append(directory)
            self._directories.add(directory)
            self._others |= _event_files(self.context, directory).keys()
        if isinstance(action, Image) and importlib.util.find_spec("PIL") is None:
            raise ImportError(f"{action.owner} writes images, which needs Pillow: pip install pillow.")

    def _directory(self, action: Any) -> Path:
        return self.context.path(f"logs/{action.run}")

    def _file(self, action: Any) -> Any:
        """The open event file of the action's run; made when something is written, so that it is always closed."""
        if action.run not in self._files:
            from tensorboardX import SummaryWriter

            # names alone differ by the second, and one of two files would replace the other
            suffix = f".{time.time_ns()}.{os.getpid()}"
            self._files[action.run] = SummaryWriter(
                str(self._directory(action)), max_queue=_QUEUE, flush_secs=_FLUSH_SECS, filename_suffix=suffix
            )
        return self._files[action.run]

    def write(self, record: Any) -> None:
        file = self._file(record.action)
        for member, action in by_member(record.action):
            suffix = "" if member is None else f"/{member}"
            match action:
                case Scalars():
                    for name, value in action.values.items():
                        file.add_scalar(name + suffix, float(value), record.step)
                case Histogram():
                    _add_histogram(file, action.tag + suffix, action, record.step)
                case Image():
                    form = "HW" if action.image.ndim == 2 else "HWC"
                    file.add_image(action.tag + suffix, action.image, record.step, dataformats=form)
                case Text():
                    text = fill(action, step=record.step, epoch=record.epoch, batch=record.batch)
                    file.add_text(action.tag + suffix, text, record.step)
                case _:
                    raise TypeError(
                        f"TensorBoard has no place for a {type(action).__name__}. Register a writer for it: "
                        f"@jc.writer({type(action).__name__})."
                    )

    def position(self) -> Any:
        # flushing is no barrier in tensorboardX; the next event goes into a new file
        self.close()
        sizes: dict[str, int] = {}
        for directory in self._directories:
            found = _event_files(self.context, directory)
            sizes |= {key: path.stat().st_size for key, path in found.items() if key not in self._others}
        return {"sizes": sizes, "others": sorted(self._others)}

    def restore(self, position: Any) -> None:
        """Cuts event files back to what had been written, and removes those that began later."""
        self._others = set(position["others"])
        for directory in self._directories:
            for key, path in _event_files(self.context, directory).items():
                if key in position["sizes"]:
                    os.truncate(path, position["sizes"][key])
                elif key not in self._others:
                    path.unlink()

    def close(self) -> None:
        # flushing is no barrier in tensorboardX: only a closed file holds everything
        while self._files:
            self._files.popitem()[1].close()


def _event_files(context: Any, directory: Path) -> dict[str, Path]:
    """The event files of a directory by the key that stays when the run's directory moves."""
    return {context.key(path): path for path in directory.glob("events.out.tfevents.*")}


def _add_histogram(file: Any, tag: str, action: Histogram, step: int) -> None:
    file.add_histogram_raw(
        tag,
        min=float(action.low),
        max=float(action.high),
        num=int(np.sum(action.counts)),
        sum=float(action.total),
        sum_squares=float(action.squares),
        # a bucket has a right limit only: an empty one in front gives the first its left
        bucket_limits=np.asarray(action.limits, np.float64).tolist(),
        bucket_counts=[0, *np.asarray(action.counts).tolist()],
        global_step=step,
    )
