"""`TrackioLogger`: logs the metrics to Trackio."""

from typing import Any, ClassVar, Literal

from jaxcb._src.callbacks.options import Options
from jaxcb._src.callbacks.reporter import Reporter
from jaxcb._src.core.actions.logging import TrackioLog
from jaxcb._src.core.metrics import Metrics
from jaxcb._src.utils.errors import check_text
from jaxcb._src.utils.pytree import static


class TrackioLogger(Reporter):
    """Logs the metrics to a run in Trackio, by step. Requires `pip install jaxcb[trackio]`.

    Trackio is local: its database is in `TRACKIO_DIR`, and `trackio show` displays it. A resumed run is one run there,
    and each record stands in it once. With `space_id` or `server_url`, which cannot be read back, a record comes at
    least once. Metrics that are arrays are left out.

    Args:
        project: the project.
        run_name: the run's name. Trackio knows runs by their name, so the run's id is appended to it; None for a name
            that contains only that id.
        every: "epoch" for the values at the end of each epoch and at each validation within an epoch. A number of
            steps adds, when `step % every == 0`, the step's own values as `batch_loss` and so on.
        init: further arguments of `trackio.init`, by name: `config`, `group`, `space_id`...

    Raises:
        TypeError: if the project or the name is not a string.
        ValueError: for an invalid `every`, or an argument that the logger sets itself.

    Example:
        >>> import jaxcb as jc
        >>> dict(jc.callbacks.TrackioLogger("digits", config={"rate": 0.1}).options)
        {'config': {'rate': 0.1}}

    Source: `trackio.init`, whose `name` and `resume` the logger sets itself.
    """

    _builds_itself: ClassVar[bool] = True

    project: str = static()
    run_name: str | None = static(default=None)
    options: Options = static(default=Options({}))

    def __init__(
        self, project: str, run_name: str | None = None, *, every: int | Literal["epoch"] = "epoch", **init: Any
    ) -> None:
        for name, value in (("project", project), ("run_name", run_name)):
            if not (value is None and name == "run_name"):
                check_text("TrackioLogger", name, value)
        for name in ("name", "resume"):
            if name in init:
                cure = "pass run_name=" if name == "name" else "pass resume= to fit"
                raise ValueError(f"TrackioLogger sets {name} itself, so that a resumed run is one run; {cure}.")
        self._set("project", project)
        self._set("run_name", run_name)
        self._set("options", Options(init))
        self._set("every", every)
        self._set("name", None)
        self._check_every()

    def on_train_begin(self, state: Any, metrics: Metrics) -> Any:
        return state, self._report({}, {}, when=True)  # opens the run

    def _report(self, values: dict[str, Any], fresh: dict[str, Any], when: Any) -> TrackioLog:
        return TrackioLog(values, fresh, self.project, self.run_name, self.options, when=when)
