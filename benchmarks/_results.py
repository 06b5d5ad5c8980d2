"""What was measured, as a table, as JSON and as a picture."""

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from _case import Case

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
FOUND = HERE / "results.json"
PACKAGES = (
    "jaxcb",
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "keras",
    "tensorflow-cpu",
    "torch",
    "pytorch-lightning",
)


class Row(NamedTuple):
    """A case's result.

    Attributes:
        name: of the case.
        title: what was trained.
        against: the one compared with: the best of those that are.
        ratio: of medians; of speeds where `least` is to be reached, of what is needed where `most` is.
        low: lower quartile of the ratios within a round.
        high: upper quartile.
        cpu: the same ratio of the seconds of all threads; None where that was not measured.
        least: what is to be reached.
        most: what is to be reached.
        medians: contestant -> median, in `unit`.
        quartiles: contestant -> lower and upper quartile.
        unit: of the medians.
        rounds: counted ones.
        check: in what the contestants agree.
        error: what went wrong; empty where nothing did.
        date: the day of a row that was measured alone, after the others; empty for the others.
    """

    name: str
    title: str
    against: str = ""
    ratio: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    cpu: float | None = None
    least: float | None = None
    most: float | None = None
    medians: dict[str, float] = {}  # noqa: RUF012
    quartiles: dict[str, list[float]] = {}  # noqa: RUF012
    unit: str = "s"
    rounds: int = 0
    check: str = ""
    error: str = ""
    date: str = ""

    @classmethod
    def of(cls, case: Case, taken: dict[str, list[float]], cpu: dict[str, list[float]], *, check: str) -> "Row":
        """What a race came to."""
        medians = {name: statistics.median(found) for name, found in taken.items()}
        against = min(case.others, key=medians.__getitem__)
        pair = (case.ours, against) if case.most is not None else (against, case.ours)
        ratios = [a / b for a, b in zip(*(taken[name] for name in pair), strict=True)]
        low, _, high = _quartiles(ratios)
        return cls(
            name=case.name,
            title=case.title,
            against=against,
            ratio=medians[pair[0]] / medians[pair[1]],
            low=low,
            high=high,
            cpu=statistics.median(cpu[pair[0]]) / statistics.median(cpu[pair[1]]) if cpu else None,
            least=case.least,
            most=case.most,
            medians=medians,
            quartiles={name: [_quartiles(found)[0], _quartiles(found)[2]] for name, found in taken.items()},
            unit=case.unit,
            rounds=len(ratios),
            check=check,
        )

    @classmethod
    def failed(cls, case: Case, error: str) -> "Row":
        """A case that came to nothing."""
        return cls(case.name, case.title, least=case.least, most=case.most, error=error)

    @property
    def bound(self) -> str:
        """What is to be reached, in words."""
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}" if self.most is not None else ""

    @property
    def reached(self) -> bool | None:
        """Whether it was; None where nothing is to be reached."""
        if self.least is not None:
            return self.ratio >= self.least
        return self.ratio <= self.most if self.most is not None else None

    def line(self) -> str:
        """The row in a line."""
        if self.error:
            return f"{self.name:24} FAILED {self.error}"
        word = {True: "reached", False: "MISSED", None: ""}[self.reached]
        cpu = "" if self.cpu is None else f" cpu {self.cpu:.3f}"
        times = ", ".join(f"{name} {_number(m)} {self.unit}" for name, m in self.medians.items())
        return (
            f"{self.name:24} {self.ratio:7.3f} ({self.low:.3f} to {self.high:.3f}){cpu} {self.bound} {word}   "
            f"[{times}]  {self.check}"
        )


def _quartiles(found: Sequence[float]) -> list[float]:
    return statistics.quantiles(found, n=4, method="inclusive") if len(found) > 1 else [found[0]] * 3


def _number(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def table(rows: Sequence[Row]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| case | against | ratio (quartiles) | to reach | | CPU time | checked |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.error:
            lines.append(f"| {row.title} | | | {row.bound} | failed | | {row.error.splitlines()[-1]} |")
            continue
        word = {True: "yes", False: "no", None: ""}[row.reached]
        lines.append(
            f"| {row.title} | {row.against} | {row.ratio:.2f} ({row.low:.2f} to {row.high:.2f}) | {row.bound} | {word} "
            f"| {'' if row.cpu is None else f'{row.cpu:.2f}'} | {row.check} |"
        )
    return "\n".join(lines)


def medians(rows: Sequence[Row]) -> str:
    """What each contestant took, as a table in Markdown."""
    lines = ["| case | contestant | median | quartiles | unit |", "|---|---|---|---|---|"]
    for row in rows:
        for name, median in row.medians.items():
            low, high = row.quartiles[name]
            lines.append(
                f"| `{row.name}` | {name} | {_number(median)} | {_number(low)} to {_number(high)} | {row.unit} |"
            )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What it is measured on. A process of its own asks jax, so that this one holds no device."""
    code = "import jax; d = jax.devices()[0]; print(jax.default_backend(), '|', d.device_kind)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    backend, kind = (part.strip() for part in asked.stdout.split("|"))
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "backend": backend,
        "device": kind,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def describe(about: dict[str, Any], rows: Sequence[Row] = ()) -> str:
    """The machine in a sentence, and which rows were measured later."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"Measured on {about['date']} on {about['backend']} ({about['device']}), {about['cores']} cores, Python "
        f"{about['python']}; {versions}." + "".join(f" `{r.name}`: {r.date}." for r in rows if r.date)
    )


def alone(rows: Sequence[Row], about: dict[str, Any]) -> tuple[list[Row], dict[str, Any]]:
    """Joins rows that were measured alone with those that are saved, and keeps what those were measured on."""
    found, then = load()
    changed = {row.name: row._replace(date=about["date"]) for row in rows}
    versions = {**about["versions"], **then["versions"]}
    return [*({row.name: row for row in found} | changed).values()], {**then, "versions": versions}


def save(rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Writes the table, the JSON and the picture."""
    found = {"machine": about, "rows": [row._asdict() for row in rows]}
    FOUND.write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "results.md").write_text(
        f"# Results\n\nMade by `make bench`. {describe(about, rows)}\n\n{table(rows)}\n\n{medians(rows)}\n"
    )
    draw(rows, DOCS / "speed.png")


def load(path: Path = FOUND) -> tuple[list[Row], dict[str, Any]]:
    """Reads results back."""
    found = json.loads(path.read_text())
    return [Row(**row) for row in found["rows"]], found["machine"]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draws the ratios with what is to be reached, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if not row.error and row.reached is not None][::-1]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(shown) + 1.2), layout="constrained")
    for place, row in enumerate(shown):
        goal = row.least if row.least is not None else row.most
        color = "tab:green" if row.reached else "tab:red"
        axes.plot([row.low, row.high], [place, place], color=color, linewidth=3, alpha=0.4)
        axes.plot(row.ratio, place, "o", color=color)
        axes.plot(goal, place, "|", color="black", markersize=14)
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    labels = [textwrap.fill(f"{row.title} / {row.against}", 56) for row in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.set_xlabel("ratio (dot: of medians; bar: quartiles; stroke: to be reached)", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
