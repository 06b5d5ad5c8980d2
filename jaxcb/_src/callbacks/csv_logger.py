"""`CSVLogger`: writes the metrics of each epoch to a CSV file."""

from typing import Any

from jaxcb._src.core.actions.logging import LogCSV
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics, fresh_scalars
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class CSVLogger(Callback):
    """Writes the metrics of each epoch, and of each validation within an epoch, to a CSV file.

    The columns are `epoch` (from 0), `step`, and the names of the metrics in order. They are fixed before the first
    step. Values that were not reported are written as `NA`.

    Args:
        filename: the file; a relative path is below `run_dir` if there is one.
        separator: the character between columns.
        append: True appends to an existing file, which must have the same header; False replaces it.

    Raises:
        TypeError: if the filename is not a path, or the separator not a single character.
        ValueError: if the filename is empty or a URL.

    Example:
        >>> import jaxcb as jc
        >>> jc.CSVLogger("log.csv", separator=";").filename
        'log.csv'

    Source: `keras.callbacks.CSVLogger`, which takes its columns from the first epoch's keys.
    """

    filename: str = static()
    separator: str = static(default=",")
    append: bool = static(default=False)

    def __post_init__(self) -> None:
        self._set("filename", path_text("CSVLogger", "filename", self.filename))
        if not isinstance(self.separator, str) or len(self.separator) != 1:
            raise TypeError(f"CSVLogger: separator must be one character, got {self.separator!r}.")

    def on_eval_end(self, state: Any, metrics: Metrics) -> Any:
        return state, self._row(metrics, when=~metrics.closes_epoch)

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, self._row(metrics, when=True)

    def _row(self, metrics: Metrics, when: Any) -> LogCSV:
        values, fresh = fresh_scalars(metrics)
        return LogCSV(values, fresh, self.filename, self.separator, self.append, when=when)
