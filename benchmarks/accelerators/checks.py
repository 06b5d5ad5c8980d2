"""What is compared between a program of jaxcb and the loop by hand, and the table of the results.

It needs no package besides Python's own, since the documentation and the tests read saved results with it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hlo import StepFacts

RESULTS = Path(__file__).with_name("results.json")
KERNELS, KERNELS_MORE, TEMPORARIES = 1.1, 3, 1.05


@dataclass(frozen=True)
class Figures:
    """What is known of one compiled program.

    Attributes:
        step: facts about a training step.
        temporaries: bytes of temporary arrays on a device.
        traced: seconds of tracing and lowering.
        compiled: seconds of XLA.
    """

    step: StepFacts
    temporaries: int
    traced: float
    compiled: float

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Figures":
        """Returns saved figures."""
        return cls(**{**saved, "step": StepFacts(**saved["step"])})


@dataclass(frozen=True)
class Row:
    """A case with its figures.

    Attributes:
        target: name of the devices.
        platform: "tpu" or "cuda".
        model: name of the model.
        case: name of the case.
        ours: figures of jaxcb's program; None if it was not compiled.
        hand: figures of the loop by hand; None if it was not compiled.
        error: why a program was not compiled.
    """

    target: str
    platform: str
    model: str
    case: str
    ours: Figures | None = None
    hand: Figures | None = None
    error: str = ""

    @classmethod
    def of(cls, saved: dict[str, Any]) -> "Row":
        """Returns a saved row."""
        programs = {name: saved[name] and Figures.of(saved[name]) for name in ("ours", "hand")}
        return cls(**{**saved, **programs})

    @property
    def key(self) -> str:
        """Identifies the case."""
        return " | ".join((self.target, self.model, self.case))

    def missed(self) -> list[str]:
        """Returns what does not hold, with its figures; nothing if all checks hold."""
        if self.ours is None or self.hand is None:
            return [f"not compiled: {self.error}"]
        ours, hand = self.ours.step, self.hand.step
        found = []

        def at_most(what: str, value: float, limit: float, by_hand: float) -> None:
            if value > limit:
                found.append(f"{what} {value:,.4g}, at most {limit:,.4g} (by hand {by_hand:,.4g})")

        if self.platform == "cuda":  # on a TPU, loops do not wait for the host
            at_most("loops of unknown trip count", ours.dynamic_loops, hand.dynamic_loops, hand.dynamic_loops)
        at_most("branches in a step", ours.branches, hand.branches, hand.branches)
        at_most("kernels of a step", ours.kernels, KERNELS * hand.kernels + KERNELS_MORE, hand.kernels)
        at_most("copies of a weight in a step", ours.copies, hand.copies, hand.copies)
        at_most("transfers with the host", ours.transfers, hand.transfers, hand.transfers)
        for kind in sorted({*ours.collectives, *hand.collectives}):
            number, by_hand = ours.collectives.get(kind, 0), hand.collectives.get(kind, 0)
            at_most(f"arrays in {kind}", number, by_hand, by_hand)
        at_most("bytes exchanged by a step", ours.exchanged, hand.exchanged, hand.exchanged)
        by_hand = self.hand.temporaries / 1e6
        at_most("MB of temporaries", self.ours.temporaries / 1e6, TEMPORARIES * by_hand, by_hand)
        return found


@dataclass(frozen=True)
class Results:
    """Saved results.

    Attributes:
        versions: package -> version.
        rows: the cases.
    """

    versions: dict[str, str]
    rows: list[Row]

    @classmethod
    def load(cls, path: Path = RESULTS) -> "Results":
        """Reads a file."""
        saved = json.loads(path.read_text())
        return cls(saved["versions"], [Row.of(row) for row in saved["rows"]])

    def save(self, path: Path = RESULTS) -> None:
        """Writes a file."""
        saved = {"versions": self.versions, "rows": [asdict(row) for row in self.rows]}
        path.write_text(json.dumps(saved, indent=1) + "\n")


HEADER = (
    "run",
    "dynamic loops",
    "branches",
    "kernels",
    "weight copies in a step (elsewhere)",
    "transfers",
    "collectives",
    "temporaries, MB",
    "seconds to trace + compile",
    "checks",
)


def cells(row: Row) -> list[str]:
    """Returns the cells of a row: jaxcb's figure, and that of the loop by hand behind a slash."""
    if row.ours is None or row.hand is None:
        return [row.case, *[""] * (len(HEADER) - 2), "MISSED"]
    ours, hand = row.ours, row.hand

    def both(a: Any, b: Any) -> str:
        return f"{a} / {b}"

    def copies(step: StepFacts) -> str:
        return f"{step.copies} ({step.copies_elsewhere})"

    def arrays(step: StepFacts) -> str:
        return ", ".join(f"{number} {kind}" for kind, number in step.collectives.items()) or "0"

    exchanged = arrays(ours.step)
    if ours.step.collectives != hand.step.collectives:
        exchanged = both(exchanged, arrays(hand.step))
    return [
        row.case,
        both(ours.step.dynamic_loops, hand.step.dynamic_loops),
        both(ours.step.branches, hand.step.branches),
        both(ours.step.kernels, hand.step.kernels),
        both(copies(ours.step), copies(hand.step)),
        both(ours.step.transfers, hand.step.transfers),
        exchanged,
        both(f"{ours.temporaries / 1e6:.1f}", f"{hand.temporaries / 1e6:.1f}"),
        both(f"{ours.traced:.1f} + {ours.compiled:.1f}", f"{hand.traced:.1f} + {hand.compiled:.1f}"),
        "MISSED" if row.missed() else "yes",
    ]


def markdown(rows: Iterable[Row]) -> str:
    """Returns the tables, one for each model on each target, and what was missed."""
    rows, lines = list(rows), []
    for group in dict.fromkeys((row.target, row.model) for row in rows):
        lines += [f"**{group[0]}, {group[1]}**", ""]
        lines += [f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
        lines += [f"| {' | '.join(cells(row))} |" for row in rows if (row.target, row.model) == group]
        lines.append("")
    missed = [row for row in rows if row.missed()]
    lines.append(f"{len(rows) - len(missed)} of {len(rows)} cases meet all checks." + " MISSED:" * bool(missed))
    lines += [""] * bool(missed) + [
        f"- {row.target}, {row.model}, {row.case}: {'; '.join(row.missed())}" for row in missed
    ]
    return "\n".join(lines)


def more_than(now: Sequence[Row], recorded: Sequence[Row]) -> list[str]:
    """Returns where a step has got more than was recorded: loops, branches, kernels, copies, transfers, collectives.

    Args:
        now: the new rows; those without a recorded row are left out.
        recorded: the recorded rows.
    """
    before, found = {row.key: row for row in recorded}, []
    for row in now:
        old = before.get(row.key)
        if old is None or old.ours is None:
            continue
        if row.ours is None:
            found.append(f"{row.key}: not compiled: {row.error}")
            continue
        for name in ("dynamic_loops", "branches", "kernels", "copies", "transfers", "exchanged"):
            value, limit = getattr(row.ours.step, name), getattr(old.ours.step, name)
            if value > limit:
                found.append(f"{row.key}: {name.replace('_', ' ')} {value}, recorded {limit}")
        arrays, limits = row.ours.step.collectives, old.ours.step.collectives
        found += [f"{row.key}: {k} {n}, recorded {limits.get(k, 0)}" for k, n in arrays.items() if n > limits.get(k, 0)]
    return found
