"""PPO on CartPole, as in examples/ppo.py: with callbacks in `jc.scan`, and without any in `lax.scan`."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxcb as jc

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import ppo

SEEDS = 4
EPOCHS = 4  # of ppo.EPOCH updates: a turn

# none of them ever ends a run: all contestants do all updates
CALLBACKS = [
    jc.EarlyStopping("episode_return", mode="max", patience=10**6, restore_best_weights=True),
    jc.ReduceLROnPlateau("episode_return", mode="max", patience=10**6),
    jc.TerminateOnNaN(),
    jc.History(),
]


def kernels(compiled: Any) -> int:
    """The kernels, loops and branches of a compiled program."""
    kinds = "fusion|custom-call|dot|convolution|sort|copy|conditional|while"
    return len(re.findall(rf" ({kinds})\(", compiled.as_text()))


def _with_callbacks(state: Any) -> Any:
    run = jc.scan(CALLBACKS, ppo.update, state, EPOCHS * ppo.EPOCH, steps_per_epoch=ppo.EPOCH)
    return run, run.records.of(jc.actions.LogHistory)[0].values["loss"]


def _by_hand(runner: Any) -> Any:
    """Trains in purejaxrl's form, and returns the mean of the losses of each epoch."""

    def epoch(runner: Any, _: None) -> Any:
        runner, values = jax.lax.scan(lambda runner, _: ppo.update(runner), runner, None, ppo.EPOCH)
        return runner, values["loss"].mean()

    return jax.lax.scan(epoch, runner, None, EPOCHS)


def contestant(*, callbacks: bool) -> Callable[[Any], dict[str, Any]]:
    """Trains in turns, each of which is one dispatch."""

    def train(baton: Any) -> dict[str, Any]:
        part = _with_callbacks if callbacks else _by_hand
        keys = jax.random.split(jax.random.key(0), SEEDS)
        state, values = jax.block_until_ready(jax.jit(jax.vmap(lambda key: part(ppo.start(key))))(keys))
        # of the first updates alone: one number that is rounded otherwise draws another action, and all that follows
        losses = [float(x) for x in jnp.ravel(values[:, :2])]
        run = jax.jit(jax.vmap(part)).lower(state).compile()
        for _ in baton.each():
            state, values = jax.block_until_ready(run(state))
        steps = baton.turns * EPOCHS * ppo.EPOCH
        return {"losses": losses, "steps": steps, "kernels": kernels(run), "dispatches": baton.turns}

    return train
