"""How a population stands: who still trains, and who was the best so far."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcb._modes import told_mode


class Standing:
    """Keeps the best report of a population of the metric that tells most: of a validation, and a loss if there is one.

    Args:
        members: how many.
        names: of the metrics that are reported.
    """

    def __init__(self, members: int, names: Any) -> None:
        self.members, self.alive = members, members
        known = [name for name in names if told_mode(name) is not None]
        order = sorted(known, key=lambda n: (not n.startswith("val_"), not n.endswith("loss"), len(n)))
        self.name = order[0] if order else None
        self._mode = told_mode(self.name) if self.name else None
        self._best: tuple[float, int] | None = None

    def take(self, values: Mapping[str, Any], fresh: Mapping[str, Any], when: Any) -> None:
        """Takes the reports of a moment in."""
        self.alive = int(np.sum(when))
        if self.name is None:
            return
        column = np.where(np.asarray(fresh[self.name]) & when, values[self.name], np.nan)
        if np.all(np.isnan(column)):
            return
        member = int(np.nanargmin(column) if self._mode == "min" else np.nanargmax(column))
        value = float(column[member])
        if self._best is None or (value < self._best[0] if self._mode == "min" else value > self._best[0]):
            self._best = (value, member)

    def parts(self) -> list[str]:
        """What is shown of it."""
        shown = [f"{self.alive} of {self.members} alive"]
        if self._best is not None:
            shown.append(f"best {self.name} {self._best[0]:.4g} (member {self._best[1]})")
        return shown
