"""Progress display on the terminal: a live bar with rich, or one line per epoch."""

import importlib.util
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcb._src.core.actions.logging import Print
from jaxcb._src.core.actions.utils import fill
from jaxcb._src.core.metric_names import infer_mode_or_none
from jaxcb._src.utils.kept_programs import seconds_compiling
from jaxcb._src.utils.names import is_rate
from jaxcb._src.writers.base import Writer, by_member


class BestSoFar:
    """Tracks the best report of a population, for one metric: preferably of a validation, and a loss.

    Args:
        members: number of members.
        names: names of the metrics that are reported.
    """

    def __init__(self, members: int, names: Any) -> None:
        self.members, self.alive = members, members
        known = [name for name in names if infer_mode_or_none(name) is not None]
        order = sorted(known, key=lambda n: (not n.startswith("val_"), not n.endswith("loss"), len(n)))
        self.name = order[0] if order else None
        self._mode = infer_mode_or_none(self.name) if self.name else None
        self._best: tuple[float, int] | None = None

    def take(self, values: Mapping[str, Any], fresh: Mapping[str, Any], when: Any) -> None:
        """Updates the best with the reports of a row."""
        self.alive = int(np.sum(when))
        if self.name is None:
            return
        column = np.where(np.asarray(fresh[self.name]) & when, values[self.name], np.nan)
        if np.all(np.isnan(column)):
            return
        member = int(np.nanargmin(column) if self._mode == "min" else np.nanargmax(column))
        value = float(column[member])
        if self._best is None or (value < self._best[0] if self._mode == "min" else value > self._best[0]):
            self._best = (value, member)

    def parts(self) -> list[str]:
        """Returns the texts to show."""
        shown = [f"{self.alive} of {self.members} alive"]
        if self._best is not None:
            shown.append(f"best {self.name} {self._best[0]:.4g} (member {self._best[1]})")
        return shown


_WORTH_SAYING = 0.05  # seconds of compiling
_SLOW = 10  # steps per second below which the speed is shown with two digits
_PAUSE = 0.1  # seconds between two updates of the bar: each takes milliseconds, and more are not visible


class _EpochLine(NamedTuple):
    """The line of an epoch, whose seconds are known when all records of its dispatch are there."""

    parts: list[str]
    step: int


class ProgressWriter(Writer):
    """Draws the bar, and prints the lines of epochs and of `Print` actions.

    Several short epochs arrive in one dispatch. Each of their lines then has the seconds of the dispatch in proportion
    to its steps.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._bar: Any = None
        self._task: Any = None
        self._live = False
        self._due = 0.0  # time of the next update
        self._lines: list[str] = []  # lines to print above the bar
        self._shown_epoch = 0
        self._last: tuple[float, int] | None = None
        self._speed = ""
        self._waiting: list[_EpochLine | str] = []  # lines of epochs, and those after them
        self._line_at, self._line_step = time.monotonic(), 0  # time and step of the last line of an epoch
        self._compiled = seconds_compiling()  # at that time
        self._standing: BestSoFar | None = None  # only for a population

    def prepare(self, action: Any) -> None:
        if isinstance(action, Print):
            return
        tty = sys.stdout.isatty()
        self._live = action.verbose == 1 or (action.verbose is None and tty)
        if np.shape(action.when):
            self._standing = BestSoFar(np.shape(action.when)[0], action.values)

    def warm_up(self) -> None:
        if self._live:
            import rich.progress  # noqa: F401

    def write(self, record: Any) -> None:
        if isinstance(record.action, Print):
            for member, line in by_member(record.action):
                whose = "" if member is None else f"member {member}: "
                text = whose + fill(line, step=record.step, epoch=record.epoch, batch=record.batch)
                if self._waiting:
                    self._waiting.append(text)
                else:
                    self._line(text)
        else:
            self._epoch_line(record)

    def _epoch_line(self, record: Any) -> None:
        total = f"/{self.context.epochs}" if self.context.epochs else ""
        values = {n: v for n, v in record.action.values.items() if np.all(record.action.fresh[n])}
        parts = [f"epoch {record.epoch + 1}{total}", f"step {record.step}"]
        if self._standing is not None:
            self._standing.take(record.action.values, record.action.fresh, record.action.when)
            if not self._live:
                self._waiting.append(_EpochLine([*parts, *self._standing.parts()], record.step))
            return
        self._waiting.append(_EpochLine([*parts, *_shown(values)], record.step))

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        ends = [line.step for line in waiting if isinstance(line, _EpochLine)]
        if not ends:
            return
        now, compiled = time.monotonic(), seconds_compiling()
        building, self._compiled = compiled - self._compiled, compiled
        building = min(building, now - self._line_at)  # programs may be compiled at the same time
        training = now - self._line_at - building
        before = start = min(self._line_step, ends[0])
        for line in waiting:
            if isinstance(line, str):
                self._line(line)
                continue
            share = (line.step - before) / max(ends[-1] - start, 1)
            seconds = _seconds(training * share)
            if building >= _WORTH_SAYING:
                seconds, building = f"{seconds}, after {_seconds(building)} of compiling", 0.0
            self._line(" · ".join([*line.parts, seconds]))
            before = line.step
        self._line_at, self._line_step = now, ends[-1]

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._lines.append(text)
        else:
            print(text, flush=True)

    def _print_lines(self) -> None:
        """Prints the waiting lines in one call, because each print redraws the bar, which takes milliseconds."""
        lines, self._lines = self._lines, []
        if lines:
            self._bar.console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)

    def tick(self, status: Any) -> None:
        if not self._live:
            return
        now = time.monotonic()
        # the host is about to act, which may take long and print: the bar shows where the run is meanwhile
        if now < self._due and not (status.yielded or status.awaits):
            return
        self._due = now + _PAUSE
        self._print_lines()
        epoch, cursor = int(status.epoch), int(status.cursor)
        if self._bar is None:
            self._bar, self._task = _make_bar()
            if not _can_draw(self._bar.console):
                self._bar, self._live = None, False
                return
            self._bar.start()
        elif epoch != self._shown_epoch and self._standing is None:
            self._bar.reset(self._task)
        self._shown_epoch = epoch
        total = f"/{self.context.epochs}" if self.context.epochs else ""
        label = f"epoch {min(epoch + 1, self.context.epochs or epoch + 1)}{total}"
        figures = "  ".join(_shown(status.window)) if cursor else ""
        self._measure(now, int(status.step))
        total_steps, completed = self.context.steps_per_epoch, cursor
        if self._standing is not None:  # the bar and its remaining time are those of the whole sweep
            figures = "  ".join(self._standing.parts())
            epochs = self.context.epochs
            total_steps = total_steps * epochs if total_steps and epochs else None
            completed = int(status.step)
        self._bar.update(
            self._task, description=label, total=total_steps, completed=completed, figures=figures, speed=self._speed
        )

    def _measure(self, now: float, step: int) -> None:
        """Updates the speed. Where the host acts, several updates come at one step: the speed stays."""
        if self._last is None or step < self._last[1]:
            self._last = (now, step)
        elif step > self._last[1]:
            speed = (step - self._last[1]) / max(now - self._last[0], 1e-9)
            self._speed = f"{speed:,.0f} steps/s" if speed >= _SLOW else f"{speed:.2g} steps/s"
            self._last = (now, step)

    def close(self) -> None:
        self.flush()
        if self._bar is not None:
            self._print_lines()
            self._bar.remove_task(self._task)
            self._bar.stop()
            self._bar = None


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 10 else f"{value:.2g} s"


def _make_bar() -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[figures]}"),
        transient=True,
    )
    return bar, bar.add_task("compiling", total=None, figures="", speed="")


def _can_draw(console: Any) -> bool:
    """Returns whether a bar can be drawn: in a file it is only blank lines, and a notebook needs a widget for it."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return bool(console.is_interactive)


def _shown(values: Any) -> list[str]:
    """Formats scalars: `loss 0.512`; the loss first, then the other metrics, those of validations, and the rates."""
    out = []
    for name in sorted(values, key=lambda n: (is_rate(n), n.startswith("val_"), n.removeprefix("val_") != "loss", n)):
        value = values[name]
        array = np.asarray(value)
        kind = name.partition("/")[0]
        if kind == "base_learning_rate" or (kind == "lr_scale" and float(np.mean(array)) == 1.0):
            continue
        if array.ndim == 0:
            out.append(f"{name} {float(array):.4g}")
    return out
