"""Playing what a run reported to one callback, and looking at what it asks for."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import pytest

import jaxcb as jc
from jaxcb.testing import Stream


@dataclasses.dataclass
class Played:
    """What a callback did: the actions that fired at each moment, and its last state."""

    actions: list[tuple[jc.actions.Action, ...]]
    state: Any

    def when(self, kind: type) -> list[int]:
        """The moments at which an action of this kind fired."""
        return [i for i, actions in enumerate(self.actions) if any(isinstance(a, kind) for a in actions)]


@pytest.fixture(autouse=True)
def _strict(strict_dtypes: None) -> None:
    pass


@pytest.fixture
def play() -> Callable[..., Played]:
    def play(callback: jc.Callback, *, hook: str = "on_epoch_end", **values: list[float | None]) -> Played:
        size = len(next(iter(values.values())))
        stream = Stream({k: tuple(v) for k, v in values.items()}, (True,) * size, tuple(range(1, size + 1)))
        chain = jc.chain(callback)
        run = jax.jit(getattr(chain, hook))
        state, fired = chain.init(), []
        for metrics in stream.metrics():
            state, actions = run(state, metrics)
            fired.append(jc.fired(actions))
        return Played(fired, state[chain.names[0]])

    return play
