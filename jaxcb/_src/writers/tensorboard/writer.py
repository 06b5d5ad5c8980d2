"""TensorBoard writer: event files in tensorboardX's format, and files of the projector."""

import contextlib
import importlib.util
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from jaxcb._src.core.actions.tensorboard import (
    Embedding,
    Figure,
    Graph,
    Histogram,
    HParams,
    Image,
    LogConfiguration,
    Scalars,
    Text,
)
from jaxcb._src.core.actions.utils import fill
from jaxcb._src.inspection.graph.draw import draw, input_names
from jaxcb._src.storage.failures import check_writable, named
from jaxcb._src.storage.ownership import Prefix
from jaxcb._src.utils.images import as_pixels
from jaxcb._src.utils.local_path import local_path
from jaxcb._src.writers.base import Writer, by_member
from jaxcb._src.writers.tensorboard.event_file import EventFile, as_graphdef, event_files, run_of
from jaxcb._src.writers.tensorboard.projector import ROOM, Projector

_PLUGINS = {Scalars: "scalars", Histogram: "histograms", Image: "images", Figure: "images"}


class TensorBoardWriter(Writer):
    """Writes event files, in one directory per run; for a population, each member has a series, `tag/member`."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._files: dict[tuple[str, str], EventFile] = {}
        self._projectors: dict[Path, Projector] = {}
        self._directories: set[Path] = set()
        self._tags: dict[tuple[Path, str], tuple[str, str]] = {}  # (run, tag) -> (plugin, owner)
        self._durable: dict[str, Prefix] = {}  # by key
        self._own: dict[str, Path] = {}  # the run's event files by key, including those of its earlier processes

        self._failed: set[str] = set()  # what could not be drawn

    def prepare(self, action: Any) -> None:
        directory = self._directory(action)
        if directory not in self._directories:
            check_writable(directory, "TensorBoard's event files")
            self.context.files.append(directory)
            self._directories.add(directory)
        self._claim(action, directory)
        has_pictures = isinstance(action, Image | Figure) or getattr(action, "sprites", None) is not None
        if has_pictures and importlib.util.find_spec("PIL") is None:
            raise ImportError(f"{action.owner} writes images, which needs Pillow: pip install jaxcb[images].")
        if isinstance(action, Embedding):
            prefix = self.context.key(self.context.path(str(directory / ROOM)))
            self._projectors.setdefault(directory, Projector(directory, self.context.record, prefix))
            if isinstance(action.labels, str) and not self._labels(action).is_file():
                raise FileNotFoundError(
                    f"{action.owner}: the labels of Embedding {action.tag!r} are in {action.labels}, which "
                    "is not a file."
                )
        if isinstance(action, Graph) and action.jaxpr is None and self.context.run.traced_step is None:
            raise ValueError(
                f"{action.owner or 'an action'} draws the graph of the run's step, which is not available in a "
                "hand-written loop: pass Graph(jax.make_jaxpr(loss_fn)(params, batch))."
            )

    def _claim(self, action: Any, directory: Path) -> None:
        """Registers the plugin of a tag: TensorBoard shows only one of two kinds of series that share a tag."""
        for kind, plugin in _PLUGINS.items():
            if isinstance(action, kind):
                for tag in action.values if isinstance(action, Scalars) else (action.tag,):
                    known, owner = self._tags.setdefault((directory, tag), (plugin, action.owner))
                    if known != plugin:
                        raise ValueError(
                            f"{action.owner} writes {plugin} under the tag {tag!r}, under which {owner} writes {known} "
                            f"in the run {action.run!r}. TensorBoard would show only one: give another tag, or run=."
                        )

    def _directory(self, action: Any) -> Path:
        # resolved first: an empty one before a slash would be the root
        log_dir = self.context.path(action.log_dir, owner=action.owner)
        return self.context.path(f"{log_dir}/{action.run}")

    def _file(self, action: Any) -> EventFile:
        """Returns the open event file of the action's run; opened at its first event, so that it is always closed."""
        run = (action.log_dir, action.run)
        if run not in self._files:
            directory, context = self._directory(action), self.context
            made = EventFile(directory, context.record.run, failures=context.failures, check=context.check_directory)
            file = self._files[run] = made
            self._own[self.context.key(file.path)] = file.path
        return self._files[run]

    def write(self, record: Any) -> None:
        step = record.epoch if getattr(record.action, "by", "step") == "epoch" else record.step
        for member, action in by_member(record.action):
            suffix = "" if member is None else f"/{member}"
            if isinstance(action, Embedding):
                self._embed(action, f"{action.tag}{suffix} {action.by} {step}")
            elif isinstance(action, Graph):
                if not member and (event := self._graph(action)) is not None:  # the same for all members
                    self._file(action).add_event(event)
            else:
                for found in self._summaries(action, record, suffix):
                    self._file(action).add_summary(found, step)

    def _embed(self, action: Embedding, name: str) -> None:
        """Adds the files of an embedding for the projector."""
        directory = self._directory(action)
        missing = self.context.failures.handled(directory / ROOM, f"The embedding {name!r} is missing.")
        with missing, named("files of the projector", directory / ROOM):
            self.context.check_directory()
            self._projectors[directory].add(name, action.vectors, self._columns(action), action.sprites)

    def _summaries(self, action: Any, record: Any, suffix: str) -> Iterator[Any]:
        """Yields the summaries of an action's events."""
        match action:
            case Scalars():
                yield from _scalars(action, suffix)
            case Histogram():
                yield _histogram(action.tag + suffix, action)
            case Image():
                yield _image(action.tag + suffix, action.image)
            case Figure():
                yield from self._figure(action, action.tag + suffix, record)
            case Text():
                text = fill(action, step=record.step, epoch=record.epoch, batch=record.batch)
                yield summary.text(action.tag + suffix, text)
            case LogConfiguration():
                yield summary.text(action.tag + suffix, self._configuration())
            case HParams():
                yield from self._hparams(action, suffix)
            case _:
                raise TypeError(
                    f"TensorBoard cannot show a {type(action).__name__}. Register a writer for it: "
                    f"@jc.writers.writer({type(action).__name__})."
                )

    def _figure(self, action: Figure, tag: str, record: Any) -> Iterator[Any]:
        """Yields a figure's summary. A drawing that fails is no reason to end a run: it warns, once for each series."""
        try:
            yield _figure(tag, action.draw({k: np.asarray(v) for k, v in action.values.items()}))
        except Exception as error:
            self._warn_undrawn(action, f"the Figure {tag!r} at step {record.step}", tag, error)

    def _warn_undrawn(self, action: Any, what: str, series: str, error: Exception) -> None:
        if series not in self._failed:
            self._failed.add(series)
            self.context.warn(
                f"{action.owner} could not draw {what}: {type(error).__name__}: {error}. The run continues without "
                "this image. Shown once per series."
            )

    def _columns(self, action: Embedding) -> list[list[str]] | Path | None:
        """Returns the labels of the vectors: one text each, or a file."""
        labels, classes = action.labels, action.classes
        if isinstance(labels, str):
            return self._labels(action)
        if labels is not None:
            labels = list(labels) if classes is None else [labels[i] for i in np.asarray(classes).tolist()]
        elif classes is not None:
            labels = [str(number) for number in np.asarray(classes).tolist()]
        return None if labels is None else [[" ".join(text.split()) or " " for text in labels]]

    def _labels(self, action: Embedding) -> Path:
        """Returns the file of the labels: it is the user's, so a relative path is not below `run_dir`."""
        return local_path(action.owner, "labels", action.labels, below=self.context.began_in)

    def _graph(self, action: Graph) -> Event | None:
        """Returns the event of a graph; None if it cannot be drawn."""
        jaxpr = action.jaxpr
        if jaxpr is not None:
            inputs, outputs = input_names(jaxpr), {f"output_{i}": i for i in range(len(jaxpr.jaxpr.outvars))}
        else:
            step = self.context.run.traced_step()
            jaxpr, inputs = step.jaxpr, input_names(step.jaxpr, ("", step.state), ("batch", step.batch))
            wanted = action.outputs or (("loss",) if "loss" in step.metrics else tuple(step.metrics))
            unknown = [name for name in wanted if name not in step.metrics]
            if unknown:
                raise ValueError(f"Graph: the step has no metric {unknown[0]!r}; it has {', '.join(step.metrics)}.")
            outputs = {name: step.metrics[name] for name in wanted}
        try:
            graph = as_graphdef(draw(jaxpr, inputs, outputs))
        except Exception as error:
            self._warn_undrawn(action, "the graph of the step", "graph", error)
            return None
        return Event(wall_time=time.time(), graph_def=graph.SerializeToString(deterministic=True))

    def _configuration(self) -> str:
        """Returns the run's settings as a table, and its callbacks as a list, in Markdown."""
        run = self.context.run
        settings = {name: value for name, value in run.settings.items() if name.split(".")[0] not in run.callbacks}
        lines = ["| setting | value |", "|---|---|", *(f"| {n} | `{v}` |" for n, v in settings.items())]
        lines += ["", *(f"- {name}: `{' '.join(words.split())}`" for name, words in run.callbacks.items())]
        return "\n".join(lines)

    def _hparams(self, action: HParams, suffix: str) -> Iterator[Any]:
        """Yields the start of a run's row, or its end."""
        settings = {**self.context.run.settings, **dict(action.settings)}
        # the experiment's description is left out: TensorBoard derives it from all runs, and would read only one
        _, begin, end = summary.hparams(settings, {})
        if action.final is None:
            yield begin
            return
        final = {f"final/{name}{suffix}": value for name, value in action.final.items()}
        yield Summary(value=[Summary.Value(tag=tag, simple_value=float(value)) for tag, value in final.items()])
        yield end

    def tick(self, status: Any) -> None:
        for file in self._files.values():
            file.tick()

    def position(self) -> Any:
        for file in self._files.values():
            file.sync()
        sizes = {key: path.stat().st_size for key, path in self._own.items() if path.is_file()}
        for key, size in sizes.items():
            self._durable.setdefault(key, Prefix()).extend(self._own[key], size)
        # a file that is missing now may be put back
        sizes |= {key: prefix.size for key, prefix in self._durable.items() if key not in sizes}
        checksums = {key: self._durable[key].checksum for key in sizes}
        projectors = {self.context.key(path): projector.position() for path, projector in self._projectors.items()}
        return {"sizes": sizes, "checksums": checksums, "projectors": projectors}

    def restore(self, position: Any) -> None:
        """Truncates the run's event files to the checkpoint's sizes, and removes those that it began later.

        Only the directories that callbacks name are searched, so that a checkpoint cannot lead to other files.

        Raises:
            ValueError: if the run may have begun a file after the checkpoint, but this cannot be determined.
        """
        sizes, record = position["sizes"], self.context.record
        if any(type(size) is not int or size < 0 for size in sizes.values()):
            raise ValueError("the checkpoint has an invalid size of an event file.")
        found = [path for directory in sorted(self._directories) for path in event_files(directory)]
        there = [path for path in found if path.is_file()]  # `_check` names others
        self._check(sizes, position.get("checksums", {}))
        if self.context.complete:
            return  # nothing will be written
        if self.context.inherits:
            self._inherit(there, sizes, position["others"])
        for path in there:
            key, run = self.context.key(path), run_of(path)
            if run == record.run or (run is None and key in record.made):
                if key in sizes:
                    self._cut(path, sizes[key])
                    self._own[key] = path
                elif run == record.run:
                    path.unlink()
        for directory, projector in self._projectors.items():
            projector.restore(position["projectors"].get(self.context.key(directory), ()), self.context.warn)

    def _inherit(self, there: list[Path], sizes: dict[str, int], others: list[str]) -> None:
        """Takes ownership of the event files of a run without an id."""
        keys = {self.context.key(path): path for path in there if run_of(path) is None}
        unknown = [str(path) for key, path in keys.items() if key not in sizes and key not in others]
        if unknown:
            raise ValueError(
                f"{', '.join(unknown)}: the checkpoint was written by a version that did not record which event files "
                "belong to the run, so these may be the run's or another's. Delete the run's files, move others to "
                "another directory, and resume again."
            )
        for key in keys.keys() & sizes.keys():
            self.context.record.make(key)

    def _check(self, sizes: dict[str, int], checksums: dict[str, int]) -> None:
        """Warns of event files that were cut, changed or removed since the checkpoint."""
        for directory in sorted(self._directories):
            place = self.context.key(directory)
            for key in (key for key in sizes if os.path.dirname(key) == place):
                path, size = directory / os.path.basename(key), sizes[key]
                known = Prefix(size, checksums[key]) if key in checksums else None
                if known is not None:
                    difference = known.difference(path)
                else:
                    there = path.stat().st_size if path.is_file() else 0
                    difference = f"has {there} bytes, but had {size}" if there < size else None
                if difference is not None:
                    self.context.warn(f"{path} {difference} at the checkpoint: some of its events are lost.")

    def _cut(self, path: Path, size: int) -> None:
        """Truncates an event file; it is never extended."""
        if path.stat().st_size > size:
            os.truncate(path, size)

    def close(self) -> None:
        files, self._files = self._files, {}
        with contextlib.ExitStack() as stack:  # all of them, also if one fails
            for file in files.values():
                stack.callback(file.close)


def _scalars(action: Scalars, suffix: str) -> Iterator[Summary]:
    """Yields one summary with all fresh values; none if no value is fresh."""
    fresh, found = action.fresh, Summary()
    for name, value in action.values.items():
        if fresh is None or fresh[name]:
            found.value.add(tag=name + suffix, simple_value=float(value))
    if found.value:
        yield found


def _image(tag: str, image: Any) -> Summary:
    return summary.image(tag, image, dataformats="HW" if image.ndim == 2 else "HWC")


def _figure(tag: str, drawn: Any) -> Summary:
    """Converts a matplotlib figure, which is then closed, or an array."""
    if not hasattr(drawn, "savefig"):
        return _image(tag, np.asarray(as_pixels(drawn, f"the result of Figure {tag!r}")))
    from PIL import Image as Picture

    file = io.BytesIO()
    drawn.savefig(file, format="png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(drawn)
    return _image(tag, np.asarray(Picture.open(file).convert("RGB")))


def _histogram(tag: str, action: Histogram) -> Any:
    return summary.histogram_raw(
        tag,
        min=float(action.low),
        max=float(action.high),
        num=int(np.sum(action.counts)),
        sum=float(action.total),
        sum_squares=float(action.squares),
        # a bucket has only a right limit: an empty bucket in front gives the first one its left limit
        bucket_limits=np.asarray(action.limits, np.float64).tolist(),
        bucket_counts=[0, *np.asarray(action.counts).tolist()],
    )
