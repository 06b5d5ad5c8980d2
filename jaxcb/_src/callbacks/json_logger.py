"""`JSONLogger`: a line of JSON an epoch."""

from typing import Any

from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import JSONLine
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class JSONLogger(Reporter):
    """Writes the metrics of each epoch to a file, a JSON object a line, and of each validation in an epoch's middle.

    An object holds `epoch` (from 0), `step`, and what was reported, as the shortest decimals that read back. JSON
    has no numbers that are not finite: they stand as "NaN", "Infinity" and "-Infinity", which `float` and
    `jc.replay` read. Metrics that are arrays are left out.

    Args:
        filename: the file; a relative path lies below `run_dir` where there is one.
        every: "epoch" for the values at the end of each epoch and at each validation in its middle; a number of
            steps for those and, when `step % every == 0`, the step's own values, as `batch_loss`.
        append: True goes on in a file that is there; False replaces it.

    Raises:
        TypeError: for a filename that is no path.
        ValueError: for a filename that is empty or an address, or another `every`.

    Example:
        >>> import jaxcb as jc
        >>> jc.callbacks.JSONLogger("log.jsonl", every=100).every
        100
    """

    filename: str = static()
    append: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self._set("filename", path_text("JSONLogger", "filename", self.filename))
        self._check_every()

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> JSONLine:
        return JSONLine(values, fresh, self.filename, self.append, when=when)
