"""`Saving`: what the host knows of a run goes into each checkpoint, and what is left of a run that failed is saved."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jaxcb.loop._keeping import Keeper
from jaxcb.loop._parts import joined

if TYPE_CHECKING:
    from jaxcb.loop._driver import Driver


class Saving:
    """Saves a driver's run where nothing is under way.

    Args:
        driver: of the run.
        keeper: writes the checkpoints; None where the run is not saved.
    """

    def __init__(self, driver: "Driver", keeper: Keeper | None) -> None:
        self._driver, self.keeper = driver, keeper
        self.whole = True  # whether no moment is half done: only then a run that failed is saved

    @contextlib.contextmanager
    def moment(self) -> Iterator[None]:
        """A moment that is whole only when the host has done its part: one that fails has to come again."""
        before, self.whole = self.whole, False
        yield
        self.whole = before

    @property
    def due(self) -> bool:
        """Whether the run is to be saved."""
        return self.keeper is not None and self.keeper.due

    def ask(self) -> None:
        """Asks for a save at the next place where nothing is under way."""
        if self.keeper is not None:
            self.keeper.ask()

    def save(self, *, wait: bool = False) -> None:
        """Saves the training; nothing may be under way."""
        if self.keeper is not None:
            self.keeper.save(self._driver.carry(), self.facts(), wait=wait)

    def save_result(self) -> None:
        """Saves what the run has come to, after `on_train_end`."""
        if self.keeper is not None:
            self.keeper.save_result(self._driver.carry(), self.facts())

    def facts(self) -> dict[str, Any]:
        """What the host knows of the run, as JSON. All that was logged so far is durable when it returns."""
        driver = self._driver
        place = driver.place
        return {
            "begun": driver.begun,
            "over": place.over,
            "step": place.step,
            "epoch": place.epoch,
            "cursor": place.cursor,
            "feed": joined(driver.processes.gather(driver.feed.position())),
            "files": driver.context.file_positions(),
            "writers": driver.performer.positions(),
            "stops": [list(stop) for stop in driver.stops],
            "elapsed": driver.host_metrics.elapsed,
            "executor": driver.executor.name,
            "strategy": None if driver.members is None else driver.members.strategy.name,
        }

    def rescue(self, error: BaseException) -> None:
        """Saves what is whole of a run that failed, and brings the caller's model up to date."""
        driver = self._driver
        if driver.lost:  # the step that failed has taken the arrays with it
            return
        with contextlib.suppress(Exception):
            driver.drain()
            driver.update_model()
        status = driver.status
        if self.keeper is None or status is None:
            return
        if not self.whole or bool(status.yielded) or bool(status.awaits):
            return  # between its moments a run is not whole: the checkpoint before is, and what follows happens again
        try:
            if int(driver.live.carry().step) != int(status.step):
                return  # an interrupt came before the last stretch was read
            driver.place.correct(status)
            driver.feed.confirm(status)
            self.save(wait=True)
        except Exception as second:
            error.add_note(f"The run could not be saved after that: {second!r}")
