"""The checkpoints of a run, read from their manifests."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from jaxcb._src.checkpointing import manifest as _manifest
from jaxcb._src.checkpointing.layout import FACTS, checkpoint_place, checkpoints_in
from jaxcb._src.checkpointing.manifest import Saved, UnusableError
from jaxcb._src.storage.schema import FormError


class Checkpoint(NamedTuple):
    """A checkpoint of a run, as its manifest describes it.

    Attributes:
        path: its directory.
        step: updates done, by its name.
        kind: "checkpoints" for one of the training, "result" for the result of a completed run.
        saved: its contents; None if the manifest cannot be used.
        reason: why it cannot be used; empty otherwise.
        bytes: the size of its files, by the manifest.
    """

    path: Path
    step: int
    kind: str
    saved: Saved | None
    reason: str
    bytes: int


def newest_facts(store: Path) -> dict[str, Any]:
    """Returns the metadata of the newest checkpoint that can be used; empty if there is none."""
    for path in sorted(checkpoints_in(store), key=lambda path: checkpoint_place(path.name), reverse=True):
        with contextlib.suppress(UnusableError, FormError):
            step, facts = _manifest.read_facts(path)
            FACTS(facts, "facts")
            if facts["step"] == step:
                return facts
    return {}


def read_checkpoint(path: Path, kind: str) -> Checkpoint:
    """Reads the manifest of a checkpoint."""
    step = checkpoint_place(path.name)[0]
    try:
        saved, files = _manifest.read(path)
        FACTS(saved.facts, "facts")
    except UnusableError as error:
        return Checkpoint(path, step, kind, None, str(error), 0)
    except FormError as error:
        return Checkpoint(path, step, kind, None, f"{_manifest.NAME} has invalid contents: {error}", 0)
    return Checkpoint(path, step, kind, saved, "", sum(size for size, _ in files.values()))
