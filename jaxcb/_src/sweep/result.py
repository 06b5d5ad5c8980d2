"""`SweepResult`: the result of a sweep."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxcb._src.core.metric_names import infer_mode_or_none, resolve_mode
from jaxcb._src.history.history import RunHistory
from jaxcb._src.loop.host.stops import StopRecord
from jaxcb._src.loop.result import Result, delivered, pages_of_results
from jaxcb._src.sweep.members import Member
from jaxcb._src.sweep.space import Point
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.errors import did_you_mean
from jaxcb._src.utils.local_path import local_path
from jaxcb._src.utils.names import is_rate

_WIDE = 200


def show(result: Any, monitor: str, mode: str, rows: int) -> None:
    """Prints the members, the best ones first.

    Args:
        result: a `SweepResult`.
        monitor: the metric to sort by.
        mode: "min", "max" or "auto".
        rows: maximum number of members to print.
    """
    from rich.console import Console
    from rich.table import Table

    mode = resolve_mode("SweepResult.show", monitor, mode)
    columns = result.table()
    best = result.bests(monitor, mode)
    order = sorted(range(len(columns["member"])), key=lambda i: _rank(best[columns["member"][i]], mode))
    paths = list(result.points[0])
    table = Table(title=f"{len(result)} members by their best {monitor}")
    names = ["member", *_short(paths), "epochs", monitor, f"best {monitor}", "end"]
    for name in names:
        table.add_column(name, justify="left" if name == "end" else "right", overflow="fold")
    for i in order[:rows]:
        cells = [columns[name][i] for name in ("member", *paths, "epochs", monitor)]
        ended = (columns["stop_reason"][i] or "ran to completion").split(":")[0]
        table.add_row(*map(_text, [*cells, float(best[cells[0]])]), ended)
    if len(result) > rows:
        table.caption = f"and {len(result) - rows} more"
    console = Console()
    if not console.is_terminal:  # a file has no width of its own
        console = Console(width=_WIDE)
    console.print(table)


def _rank(value: float, mode: str) -> float:
    if math.isnan(value):
        return math.inf
    return value if mode == "min" else -value


def _short(paths: list[str]) -> list[str]:
    """Returns the last part of each path, or the whole path if that part is not unique."""
    ends = [path.rpartition(".")[2] for path in paths]
    return [end if ends.count(end) == 1 else path for end, path in zip(ends, paths, strict=True)]


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Part(NamedTuple):
    """The results of the members that trained in one program.

    Attributes:
        members: in the order of the member axis.
        state: their final train states, with a leading member axis.
        callback_states: name -> the callback's states, with a leading member axis.
        history: the history of all of them.
        stops: the stops that fired.
        interrupted: whether a signal ended it.
        executor: "looped" or "stepped".
        strategy: "vmap", "map" or "shard".
        sizes: number of members of each successive program.
        run_dir: the directory, or None.
        files: the files that were written.
        shares_frozen: whether the members share the frozen parameters, which then have no member axis.
    """

    members: tuple[Member, ...]
    state: TrainState
    callback_states: dict[str, Any]
    history: RunHistory
    stops: tuple[StopRecord, ...]
    interrupted: bool
    executor: str
    strategy: str
    sizes: tuple[int, ...]
    run_dir: Path | None
    files: tuple[Path, ...]
    shares_frozen: bool = True

    def result(self, row: int) -> Result:
        """Returns one member as the result of a single run."""
        member, stops = self.members[row], self._stops_of(row)
        frozen = self.state.frozen
        if not self.shares_frozen:
            frozen = jax.tree.map(lambda x: x[row], frozen)
        state, states = jax.tree.map(lambda x: x[row], (self.state.replace(frozen=None), self.callback_states))
        state = state.replace(frozen=frozen, adapter=member.adapter)
        return Result(
            state=state,
            model=delivered(state),
            history=self.history.member(row),
            stop_reason=self.reason_of(row),
            stopped_epoch=stops[0].epoch if stops else None,
            callback_states=states,
            executor=self.executor,
            run_dir=self.run_dir,
            files=self.files,
            member=member.number,
            point=member.point,
        )

    def _stops_of(self, row: int) -> list[StopRecord]:
        return [s for s in self.stops if s.member == row]

    def reason_of(self, row: int) -> str | None:
        """Returns which callback stopped a member and why; None if it completed."""
        stops = self._stops_of(row)
        reason = "; ".join(f"{s.owner}: {s.reason}" if s.owner else s.reason for s in stops) or None
        return "interrupted" if self.interrupted and not stops else reason

    def epochs_of(self, row: int) -> int:
        """Returns the number of epochs that a member has done."""
        done = self.history.epoch[self.history.rows_of(row)]
        return int(done[-1]) + 1 if len(done) else 0


@dataclass(frozen=True)
class SweepResult(Sequence[Result]):
    """The result of a sweep: a sequence of ordinary results, one per member.

    Attributes:
        points: the swept values of each member, by path.
        parts: the trained populations, one per program.
        run_dir: the sweep's directory, or None.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> def loss_fn(params, x):
        ...     return jnp.mean((params["w"] - x) ** 2)
        >>> result = jc.sweep(lambda seed: {"w": jnp.zeros(())}, loss_fn, jnp.ones(8), optimizer=optax.sgd,
        ...                   learning_rate=0.1, over={"optimizer.learning_rate": [0.01, 0.1]}, epochs=5, verbose=0)
        >>> result.best("loss").point
        {'optimizer.learning_rate': 0.1}
    """

    points: tuple[Point, ...]
    parts: tuple[Part, ...] = field(repr=False)
    run_dir: Path | None = None

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.member(i) for i in range(*index.indices(len(self)))]
        return self.member(index)

    def member(self, index: int) -> Result:
        """Returns one member as an ordinary result, with its model, history and callback states."""
        index = range(len(self))[index]
        if index not in self._places:
            raise LookupError(f"member {index} was not trained: the sweep was interrupted before it started.")
        part, row = self._places[index]
        return part.result(row)

    @property
    def _places(self) -> dict[int, tuple[Part, int]]:
        """The part and the row of each trained member."""
        return {m.number: (p, r) for p in self.parts for r, m in enumerate(p.members)}

    @property
    def history(self) -> dict[str, np.ndarray]:
        """Metric name -> its values, float32 (rows, members, ...), NaN where a member has not reported it."""
        rows = max((len(p.history.step) for p in self.parts), default=0)
        found: dict[str, np.ndarray] = {}
        for part in self.parts:
            at = [m.number for m in part.members]
            for name, column in part.history.items():
                if len(column):
                    shape = (rows, len(self), *column.shape[2:])
                    found.setdefault(name, np.full(shape, np.nan, np.float32))[: len(column), at] = column
        return found

    def best(self, monitor: str = "val_loss", mode: Literal["auto", "min", "max"] = "auto") -> Result:
        """Returns the member with the best report of all; a NaN is never the best.

        Args:
            monitor: a metric's name.
            mode: "min", "max", or "auto" to derive it from the name.

        Returns:
            The member's `Result`.

        Raises:
            KeyError: if the name was not reported; lists those that were.
            ValueError: if no member has reported a number.
        """
        column = self.bests(monitor, resolve_mode("SweepResult.best", monitor, mode))
        if np.all(np.isnan(column)):
            raise ValueError(f"no member has reported a {monitor} that is a number.")
        lowest = resolve_mode("SweepResult.best", monitor, mode) == "min"
        return self.member(int(np.nanargmin(column) if lowest else np.nanargmax(column)))

    def bests(self, monitor: str, mode: str) -> np.ndarray:
        """Returns each member's best report, float32 (members,), NaN if it has none."""
        history = self.history
        if monitor not in history:
            raise KeyError(f"{monitor}; recorded: {', '.join(sorted(history))}{did_you_mean(monitor, history)}")
        away = math.inf if mode == "min" else -math.inf
        values = np.where(np.isnan(history[monitor]), away, history[monitor])
        best = values.min(axis=0) if mode == "min" else values.max(axis=0)
        return np.where(best == away, np.nan, best)

    def table(self) -> dict[str, list[Any]]:
        """Returns one row per trained member, as columns by name, ready for `pandas.DataFrame`.

        Returns:
            `member`, the swept values by path, `epochs` and `steps` done, `stop_reason` (None if it completed),
            the last report of each metric under its name, and the best one as `best_NAME` if its name
            implies which direction is better.
        """
        places = dict(sorted(self._places.items()))
        columns: dict[str, list[Any]] = {"member": list(places)}
        columns |= {path: [self.points[i][path] for i in places] for path in self.points[0]}
        columns["epochs"] = [part.epochs_of(row) for part, row in places.values()]
        columns["steps"] = [int(part.state.step[row]) for part, row in places.values()]
        columns["stop_reason"] = [part.reason_of(row) for part, row in places.values()]
        # without metrics that are arrays
        scalars = {name: values for name, values in self.history.items() if values.ndim == 2 and not is_rate(name)}
        for name, values in scalars.items():
            columns[name] = [_last(values[:, i]) for i in places]
        for name in scalars:
            mode = infer_mode_or_none(name)
            if mode is not None:
                columns[f"best_{name}"] = self.bests(name, mode)[list(places)].tolist()
        return columns

    def write_table(self, path: str | Path) -> Path:
        """Writes the table as a CSV file."""
        columns = self.table()
        path = local_path("SweepResult.write_table", "path", path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(columns)
            rows.writerows(zip(*columns.values(), strict=True))
        return path

    def report(self, path: str | Path = "report.html") -> Path:
        """Writes a report: one HTML file with the table of members, parallel coordinates and the members' curves.

        It has no scripts and needs no network. Of a sweep with a `run_dir` it is the page of `jaxcb report RUN_DIR`. A
        notebook shows the same page.

        Args:
            path: the file to write.

        Returns:
            Its path.
        """
        return pages_of_results().write(self, local_path("SweepResult.report", "path", path))

    def _repr_html_(self) -> str:
        return pages_of_results().fragment(self)

    def show(self, monitor: str = "val_loss", mode: Literal["auto", "min", "max"] = "auto", *, rows: int = 20) -> None:
        """Prints the table with rich, the best members first."""
        show(self, monitor, mode, rows)

    def plot(
        self, path: str | Path | None = None, *, monitor: str = "val_loss", mode: Literal["auto", "min", "max"] = "auto"
    ) -> Any:
        """Draws the curves of all members with their ends marked, and a plot of parallel coordinates.

        Args:
            path: an image file to save, such as "sweep.png".
            monitor: the metric.
            mode: "min", "max", or "auto" to derive it from the name.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: without matplotlib (`pip install jaxcb[plot]`).
        """
        from jaxcb._src.plotting.sweep import picture

        return picture(self, monitor, resolve_mode("SweepResult.plot", monitor, mode), path)


def _last(column: np.ndarray) -> float:
    known = column[~np.isnan(column)]
    return float(known[-1]) if len(known) else math.nan
