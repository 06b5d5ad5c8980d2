"""`CSVLogger`: writes the metrics of each epoch to a CSV file."""

from typing import Any, ClassVar

from jaxcb._src.core.actions.logging import LogCSV
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metric_names import columns
from jaxcb._src.core.metrics import Metrics, fresh_scalars, fresh_values
from jaxcb._src.utils.errors import check_bool, shown
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static

_NO_SEPARATORS = '0123456789+-.einfaNA"\r\n\0'  # of these, numbers, `NA` and quoted names are made


class CSVLogger(Callback):
    """Writes the metrics of each epoch, and of each validation within an epoch, to a CSV file.

    The columns are `epoch` (from 0), `step`, and the names of the metrics in order. They are fixed before the first
    step. Values that were not reported are written as `NA`.

    Args:
        filename: the file; a relative path is below `run_dir` if there is one.
        separator: the character between columns.
        append: True appends to an existing file, which must have the same header; False replaces it.
        arrays: whether a metric that is an array has a column for each of its numbers, `name[0]`, `name[1]` and so on.
            By default the file has scalars only.

    Raises:
        TypeError: if the filename is not a path, or the separator not a single character that separates.
        ValueError: if the filename is empty or an address that no store serves.

    Example:
        >>> import jaxcb as jc
        >>> jc.CSVLogger("log.csv", separator=";").filename
        'log.csv'

    Source: `keras.callbacks.CSVLogger`, which takes its columns from the first epoch's keys.
    """

    logs_only: ClassVar[bool] = True

    filename: str = static()
    separator: str = static(default=",")
    append: bool = static(default=False)
    arrays: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._set("filename", path_text("CSVLogger", "filename", self.filename))
        if not isinstance(self.separator, str) or len(self.separator) != 1 or self.separator in _NO_SEPARATORS:
            raise TypeError(
                "CSVLogger: separator must be one character that stands in no number, quote or line end, such as ',' "
                f"or ';', got {shown(self.separator)}."
            )
        for name in ("append", "arrays"):
            self._set(name, check_bool("CSVLogger", name, getattr(self, name)))

    def on_eval_end(self, state: Any, metrics: Metrics) -> Any:
        return state, self._row(metrics, when=~metrics.closes_epoch)

    def on_epoch_end(self, state: Any, metrics: Metrics) -> Any:
        return state, self._row(metrics, when=True)

    def _row(self, metrics: Metrics, when: Any) -> LogCSV:
        if self.arrays:
            values, fresh = fresh_values(metrics)
            flat = [(n, x) for name, value in values.items() for n, x in _numbers(name, value)]
            fresh = {n: fresh[name] for name, value in values.items() for n in columns(name, value.shape)}
            values = dict(flat)
        else:
            values, fresh = fresh_scalars(metrics)
        return LogCSV(values, fresh, self.filename, self.separator, self.append, when=when)


def _numbers(name: str, value: Any) -> list[tuple[str, Any]]:
    """Returns the numbers of an array by the names of their columns."""
    return list(zip(columns(name, value.shape), value.reshape(-1), strict=True))
