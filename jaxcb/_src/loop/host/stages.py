"""Stages of a run: at the beginning of an epoch it trains more of the parameters, in another program."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from jaxcb._src.core.callback import Callback
from jaxcb._src.loop.compiled.device_state import DeviceState
from jaxcb._src.loop.compiled.executor import Executor
from jaxcb._src.loop.compiled.state import LoopState, owned
from jaxcb._src.models.trainable import Filter, describe
from jaxcb._src.sharding.arrays import copied
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.training_config import TrainingConfig
from jaxcb._src.utils.errors import check_int


class Stage(NamedTuple):
    """A part of a run with its own trained parameters.

    Attributes:
        epoch: the first epoch, from 0.
        name: what it trains, for the line that announces it.
        begin: returns the train state of the stage, given that of the stage before.
    """

    epoch: int
    name: str
    begin: Callable[[TrainState], TrainState]


class Stages:
    """The stages of a run that are left.

    Args:
        stages: all stages but the first, in order.
        done: number of those that have begun.
        build: returns the executor for the train state that a run begins with.
        say: prints a line.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        done: int,
        build: Callable[[TrainState], Executor],
        say: Callable[[str], None],
    ) -> None:
        self._stages, self.done = stages, done
        self._build, self._say = build, say

    def next_epoch(self) -> int | None:
        """Returns the epoch in which the next stage begins; None if there is none."""
        return self._stages[self.done].epoch if self.done < len(self._stages) else None

    def advance(self, carry: LoopState) -> tuple[Executor, DeviceState]:
        """Begins the next stage.

        Args:
            carry: the loop state at the end of the stage before.

        Returns:
            The executor of its program, and its loop state.
        """
        stage = self._stages[self.done]
        self.done += 1
        train = stage.begin(carry.train)
        # as at the beginning of a run, so that a run that resumes in this stage finds the same programs
        executor = self._build(train.replace(opt_state=None, weights={}))
        trained, frozen = (sum(x.size for x in jax.tree.leaves(part)) for part in (train.params, train.frozen))
        self._say(
            f"jaxcb: epoch {stage.epoch + 1} trains {trained:,} of {trained + frozen:,} parameters ({stage.name}), in "
            "another program, which is compiled now."
        )
        if executor.placement.mesh is not None:
            train = executor.placement.put_state(train)
        return executor, DeviceState.of(owned(carry.replace(train=train), copied))


def stages_of(trainable: Mapping[int, Filter], training: TrainingConfig) -> tuple[Filter, tuple[Stage, ...]]:
    """Returns what is trained at first, and the further stages, for `trainable={0: ..., epoch: ...}`.

    Raises:
        ValueError: if nothing says what is trained at first, or for a callback that wraps the optimizer.
    """
    epochs = sorted(check_int(training.owner, "each epoch of trainable", epoch, concrete=True) for epoch in trainable)
    if not epochs or epochs[0]:
        raise ValueError(
            f"{training.owner}: trainable is a dict of epochs, so it must say what is trained from epoch 0: "
            "trainable={0: 'head/**', 5: '**'}."
        )
    for name, callback in training.callbacks.items():
        if type(callback).setup is not Callback.setup:
            raise ValueError(
                f"{training.owner}: {name} wraps the optimizer at the start of the run, and trainable= with epochs "
                "makes another one later. Train one part in the whole run, or continue with fit(result, trainable=...)."
            )
    first, *later = epochs
    stages = tuple(
        Stage(e, describe(trainable[e]), training.with_trainable(trainable[e], staged=True).extended) for e in later
    )
    return trainable[first], stages
