"""`HTMLReport`: keeps a page about the run up to date."""

from typing import Any, ClassVar

from jaxcb._src.core.actions.logging import WriteReport
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.local_path import path_text
from jaxcb._src.utils.pytree import static


class HTMLReport(Callback):
    """Writes the report of the run, one HTML file, and renews it at each save and at the end of the run.

    It is the page of `jaxcb report`: curves with stops, best epochs and rate cuts marked, the table of decisions,
    configuration and checkpoints. It has no scripts and needs no network. The run needs a `run_dir`, since a save is
    what the page is made from. Where saves follow one another quickly, some of them do not renew the page, so that
    reports take no more than a twentieth of the run's time. A report that cannot be written is a warning.

    Args:
        filename: the file; a relative path is below `run_dir`.

    Raises:
        TypeError: if the filename is not a path.
        ValueError: if the filename is empty or an address that no store serves; before the first step, if the run has
            no `run_dir`.

    Example:
        >>> import jaxcb as jc
        >>> callback = jc.callbacks.HTMLReport("report.html")
        >>> state, action = callback.on_train_begin(callback.init(), jc.Metrics({}))
        >>> action.path
        'report.html'

    Source: `dvclive.Live(report="html")`.
    """

    logs_only: ClassVar[bool] = True

    filename: str = static(default="report.html")

    def __post_init__(self) -> None:
        self._set("filename", path_text("HTMLReport", "filename", self.filename))

    def on_train_begin(self, state: Any, metrics: Metrics) -> Any:
        return state, WriteReport(self.filename)
