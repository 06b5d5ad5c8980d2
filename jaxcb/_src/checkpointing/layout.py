"""The layout of a run's checkpoints: names of directories, and the form of their metadata.

It imports no JAX, so that the command line can read a run without it.
"""

import os
import re
from pathlib import Path

from jaxcb._src.checkpointing import manifest as _manifest
from jaxcb._src.storage.schema import (
    anything,
    boolean,
    choice,
    either,
    entries,
    mapping,
    maybe,
    number,
    record,
    sequence,
    text,
    whole,
)

CHECKPOINTS, RESULT = "checkpoints", "result"  # subdirectories of the run directory
TABLE = "table.csv"  # in the directory of a sweep
CHECKPOINT = re.compile(r"step_(\d{9,})(?:-(\d+))?")  # the second number counts saves of the same step
_COUNT = whole(2**31 - 1)
_TRACE = record({"jax": text, "hash": text})
_DATA = maybe(record({}, {"rows": whole(), "batches": whole(), "hash": maybe(text)}))
_REQUEST = record(
    {},
    {"train_data": _DATA, "validation": mapping(_DATA), "loss_fn": _TRACE, "train_step": _TRACE, "optimizer": _TRACE},
)
# the metadata of a run's checkpoint; a fact that earlier versions did not store is optional
FACTS = record(
    {
        "begun": boolean,
        "over": boolean,
        "step": _COUNT,
        "epoch": _COUNT,
        "cursor": _COUNT,
        "feed": maybe(
            record(
                {},
                {
                    "pass": _COUNT,
                    "batches": _COUNT,
                    "checksum": maybe(text),
                    "first": sequence(entries(_COUNT, text)),
                },
            )
        ),
        "files": mapping(
            either(
                whole(),
                record({"end": whole()}, {"waiting": text}),
                record({name: whole() for name in ("lines", "bytes", "checksum", "rewritten")}, {"waiting": text}),
            )
        ),
        "writers": mapping(anything),
        "stops": sequence(entries(text, text, _COUNT, _COUNT, maybe(_COUNT), least=4)),
        "elapsed": number,
        "executor": choice("looped", "stepped"),
        "strategy": maybe(text),
        "callbacks": mapping(text),
        "config": record(
            {
                "epochs": maybe(whole()),
                "steps": maybe(whole()),
                "callbacks": mapping(text),
                "data": mapping(anything),
                "layout": text,
            },
            {"request": _REQUEST},
        ),
    },
    {"block": whole(32), "record": entries(whole(), whole()), "stage": _COUNT},
)


def checkpoint_place(name: str) -> tuple[int, int]:
    """Returns step and save count of a name, by which checkpoints are sorted."""
    match = CHECKPOINT.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def checkpoints_in(directory: Path) -> list[Path]:
    """Returns the directories with a manifest, of any run and in any condition."""
    names = sorted(name for name in listed(directory) if CHECKPOINT.fullmatch(name))
    return [directory / name for name in names if (directory / name / _manifest.NAME).exists()]


def listed(directory: Path) -> list[str]:
    """Returns the names in a directory; none if there is no directory."""
    return os.listdir(directory) if directory.is_dir() else []


def described_fields(words: str) -> tuple[str, dict[str, str]]:
    """Splits a checkpoint's description of a callback into its class and its fields, as text."""
    kind, _, inner = words.removesuffix(")").partition("(")
    parts, depth, start, quote = [], 0, 0, ""
    for i, c in enumerate(inner):
        if quote or c in "'\"":  # inside of a text, or at its begin
            quote = (quote if c != quote or inner[i - 1] == "\\" else "") if quote else c
            continue
        depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth:
            parts.append(inner[start:i])
            start = i + 1
    named = [part.strip().partition("=") for part in [*parts, inner[start:]]]
    return kind, {name: value for name, sep, value in named if sep}
