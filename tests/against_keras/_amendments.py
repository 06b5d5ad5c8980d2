"""Amendments: Keras's decisions replaced one by one, as classes to be mixed into its own.

Keras amended by all that apply decides as jaxcb does; that is what a difference on purpose means.
"""

from typing import Any

import numpy as np

# pyright: basic, reportAttributeAccessIssue=false


class Float32:
    """Values and deltas are float32 before anything is subtracted."""

    def _is_improvement(self, value: Any, reference: Any) -> Any:
        reference = None if reference is None else np.float32(reference)
        return super()._is_improvement(np.float32(value), reference)


class NaNIsNoBest:
    """NaN is never an improvement; until there is one, nothing is restored and the first report stops nothing."""

    def _is_improvement(self, value: Any, reference: Any) -> Any:
        return not np.isnan(value) and super()._is_improvement(value, reference)


class NaNStopsNothingFirst(NaNIsNoBest):
    """The same for early stopping, which has more to it."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        first = self.best is None and self.wait == 0
        super().on_epoch_end(epoch, logs)
        if first:
            self.model.stop_training = False

    def on_train_end(self, logs: Any = None) -> None:
        if self.best is None:
            self.best_weights = None
        super().on_train_end(logs)


class BaselineEndsPatience:
    """What does not beat the baseline uses up patience, also where it is the best so far."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        first, before = self.best is None and self.wait == 0, self.wait
        super().on_epoch_end(epoch, logs)
        if self.wait > before and self.wait >= self.patience and not first:
            self.model.stop_training = True


class MissingIsRefused:
    """A monitor that the run does not have is refused before the first step."""

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        if self.monitor not in self.model.names and getattr(self, "save_best_only", True):
            raise LookupError(self.monitor)


class SavesReportsAlone:
    """With `save_best_only` an epoch that does not report the monitor saves nothing."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self.save_best_only or self.monitor in logs:
            super().on_epoch_end(epoch, logs)


class RemembersReports:
    """A path may ask for what was reported before; NaN where nothing was."""

    def _get_file_path(self, epoch: int, batch: int | None, logs: Any) -> str:
        known = dict.fromkeys(self.model.names, float("nan")) | getattr(self, "known", {}) | logs
        return super()._get_file_path(epoch, batch, known)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.known = getattr(self, "known", {}) | logs
        super().on_epoch_end(epoch, logs)


class ComparesAtEachDueStep:
    """With `save_best_only` each due step compares the last report of the monitor, and a validation there once more."""

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        self._set_monitor_op()
        self.last, self.step = {}, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        self.last_batch = batch
        if self.monitor in logs:  # a loss has a value at each step
            self.last = {self.monitor: logs[self.monitor]}
        super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        if self.monitor.startswith("val_") and self.monitor in logs:
            self.last = {self.monitor: logs[self.monitor]}
            if self.step % self.save_freq == 0:
                self.model.batch = self.last_batch
                self._save_model(epoch, self.last_batch, self.loss_before(epoch))

    def loss_before(self, epoch: int) -> dict[str, float]:
        """The training means that a validation sees: those of the epoch before."""
        past = self.model.case.epochs[epoch - 1] if epoch else {}
        return {"loss": past.get("loss", float("nan"))}

    def _should_save_model(self, epoch: int, batch: int, logs: Any, filepath: str) -> bool:
        if not self.last:
            return False
        return super()._should_save_model(epoch, batch, self.last, filepath)


class KnowsItsColumns:
    """Columns are the epoch, the step and the metrics that the run has, known before the first step."""

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        self.keys = ["step", *sorted(self.model.names)]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, {**logs, "step": epoch + 1})


class WritesFloat32:
    """Numbers are the shortest decimals that read back as the same float32."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        as_text = {name: str(np.float32(v)) if isinstance(v, float) else v for name, v in logs.items()}
        super().on_epoch_end(epoch, as_text)
