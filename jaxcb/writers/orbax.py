"""Checkpoints that callbacks ask for, with Orbax. These are exports: a run resumes from its own."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcb._actions import fill
from jaxcb.writers._location import check_writable
from jaxcb.writers._writer import Writer, by_member

_MARK = "orbax.checkpoint"  # a file in each checkpoint; `ocp.is_orbax_checkpoint` says yes to any directory


class CheckpointWriter(Writer):
    """Saves while the run waits; a population's members lie below the path, each under its number."""

    def prepare(self, action: Any) -> None:
        zeros = jax.tree.map(lambda x: np.zeros((), x.dtype), action.values)
        path = self._path(action.replace(values=zeros), step=0, epoch=0)
        check_writable(path.parent, "checkpoints")
        if not action.when.shape:
            _refuse_others(path)

    def _path(self, action: Any, *, step: int, epoch: int) -> Path:
        return self.context.path(fill(action, step=step, epoch=epoch)).absolute()  # Orbax takes no relative ones

    def write(self, record: Any) -> None:
        for member, action in by_member(record.action):
            path = self._path(action, step=record.step, epoch=record.epoch)
            state = self.context.run.state  # copies: donation takes nothing from what is being saved
            if member is not None:
                path, state = path / str(member), jax.tree.map(lambda x, m=member: x[m], state)
            facts = {"step": record.step, "epoch": record.epoch, "what": action.what, "owner": action.owner}
            try:
                _save(path, _chosen(state, action.what), facts)
            except Exception as error:
                error.add_note(
                    f"This happened while saving {path} for {action.owner}, in epoch {record.epoch + 1} at step "
                    f"{record.step}."
                )
                raise
            if path not in self.context.files:
                self.context.files.append(path)


def _chosen(state: Any, what: str) -> Any:
    return state if what == "state" else {"params": state.params, "model_state": state.model_state}


def _refuse_others(path: Path) -> None:
    """Raises an error where something else than a checkpoint is in the way."""
    if path.exists() and not (path / _MARK).is_file():
        raise FileExistsError(f"{path} is there and is no Orbax checkpoint, so it is not replaced. Give another path.")


def _save(path: Path, tree: Any, facts: dict[str, Any]) -> None:
    """Saves so that at any time a complete checkpoint is there: the old one goes when the new one is complete."""
    from orbax.checkpoint import v1 as ocp

    _refuse_others(path)
    if not path.exists():
        ocp.save(str(path), tree, custom_metadata=facts)
        return
    # Orbax's own overwrite=True deletes first and then saves
    new, old = (path.with_name(f"{path.name}.jaxcb-{age}") for age in ("new", "old"))
    ocp.save(str(new), tree, overwrite=True, custom_metadata=facts)
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed right here
    path.rename(old)
    new.rename(path)
    shutil.rmtree(old)
