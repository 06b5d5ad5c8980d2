"""`BackupAndRestore`: saves the run at chosen intervals, so that it can resume after being killed."""

from typing import Any, Literal

from jaxcb._src.core.actions.host import Backup
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_interval
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class BackupAndRestore(Callback):
    """Saves the whole run at chosen intervals, so that the same command resumes it after it was killed.

    A run with a `run_dir` is saved in any case, at least every 60 seconds and at its end, and `resume=True` resumes
    it. This callback adds saves at intervals that you choose. Without a `run_dir`, its `backup_dir` becomes the run's
    directory, and the run resumes from it automatically, as in Keras.

    Args:
        backup_dir: the directory of the run if `fit` gets no `run_dir`. An address that is not that of the run is
            refused before the first step.
        save_freq: "epoch", or a number of steps: a save is due where `step % save_freq == 0`.

    Raises:
        ValueError: for an invalid `save_freq`.

    Example:
        >>> import jaxcb as jc
        >>> backup = jc.BackupAndRestore("runs/a", save_freq=100)
        >>> _, action = backup.on_batch_end((), jc.Metrics({"loss": 0.5}, step=200))
        >>> bool(action.when)
        True

    Source: `keras.callbacks.BackupAndRestore`, which saves neither the states of callbacks nor the order of the data.
    """

    backup_dir: str = static()
    save_freq: int | Literal["epoch"] = static(default="epoch")

    def __post_init__(self) -> None:
        self._set("backup_dir", path_text("BackupAndRestore", "backup_dir", self.backup_dir))
        self._set("save_freq", check_interval("BackupAndRestore", "save_freq", self.save_freq))

    def hooks(self) -> frozenset[str]:
        return frozenset({"on_epoch_end" if self.save_freq == "epoch" else "on_batch_end"})

    def on_batch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, Backup(when=metrics.step % self.save_freq == 0)

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, Backup()
