"""`JSONLogger`: writes the metrics to a JSON Lines file."""

from typing import Any, ClassVar

from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import JSONLine
from jaxcb._src.utils.errors import check_bool
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class JSONLogger(Reporter):
    """Writes the metrics of each epoch, and of each validation within an epoch, to a JSON Lines file.

    Each object has `epoch` (from 0), `step`, and the reported values, as the shortest decimals that parse to the same
    float. JSON has no non-finite numbers: they are written as the strings "NaN", "Infinity" and "-Infinity", which
    `float` and `jc.replay` read. Metrics that are arrays are left out.

    Args:
        filename: the file; a relative path is below `run_dir` if there is one.
        every: "epoch" for the values at the end of each epoch and at each validation within an epoch. A number of
            steps adds, when `step % every == 0`, the step's own values as `batch_loss` and so on.
        append: True appends to an existing file; False replaces it.

    Raises:
        TypeError: if the filename is not a path.
        ValueError: if the filename is empty or an address that no store serves, or for an invalid `every`.

    Example:
        >>> import jaxcb as jc
        >>> jc.callbacks.JSONLogger("log.jsonl", every=100).every
        100
    """

    takes_arrays: ClassVar[bool] = True

    filename: str = static()
    append: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._set("filename", path_text("JSONLogger", "filename", self.filename))
        self._set("append", check_bool("JSONLogger", "append", self.append))
        self._check_every()

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> JSONLine:
        return JSONLine(values, fresh, self.filename, self.append, when=when)
