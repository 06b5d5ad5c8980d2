"""`CSVLogger`: a row an epoch in a CSV file."""

from typing import Any

from jaxcb._src.core.actions.logging import LogCSV
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics, fresh_scalars
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class CSVLogger(Callback):
    """Writes the metrics of each epoch to a CSV file, and of each validation in an epoch's middle.

    Columns are `epoch` (from 0), `step`, and the metrics' names in order, known before the first step. What
    was not reported stands as `NA`.

    Args:
        filename: the file; a relative path lies below `run_dir` where there is one.
        separator: what stands between columns.
        append: True goes on in a file that is there, whose header must be the same; False replaces it.

    Raises:
        TypeError: for a filename that is no path, or an empty separator.
        ValueError: for a filename that is empty or an address.

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
