"""PPO with 16 seeds in one compiled program: each stops alone, and keeps its best policy.

    python examples/ppo.py --run-dir runs/ppo

The form is that of purejaxrl (C. Lu et al., 2022): environment, rollout and updates are one `update`, and all updates
are one `lax.scan`, mapped over seeds by `vmap`. `jc.scan` takes the place of `lax.scan`; nothing else changes.
`by_hand` is the loop that it replaces. The run has several parts, each of which is saved with Orbax; started again
after it was killed, it continues after the last part that was saved, and ends with the same bits.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from orbax.checkpoint import v1 as ocp

import jaxcb as jc

ENVS, STEPS, MINIBATCHES, PASSES = 8, 64, 4, 4
DISCOUNT, TRACE, CLIP, VALUE, ENTROPY = 0.99, 0.95, 0.2, 0.5, 0.01
LIMIT = 500  # steps of an episode
EPOCH = 4  # updates

CALLBACKS = [
    jc.EarlyStopping("episode_return", mode="max", patience=12, stopping_threshold=450.0, restore_best_weights=True),
    jc.ReduceLROnPlateau("episode_return", mode="max", factor=0.5, patience=6),
    jc.History(),
]


# The environment: CartPole, as in Gymnasium's CartPole-v1


class CartPole(NamedTuple):
    """Position and velocity of the cart, angle and angular velocity of the pole: float32 (4,); steps done: int32 ()."""

    body: Any
    age: Any


def reset(key):
    return CartPole(jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), jnp.zeros((), jnp.int32))


def push(env: CartPole, action, key):
    """One step: the next state, the reward, and whether the episode ended; then the state is that of a new one."""
    _, speed, angle, turn = env.body
    force, sine, cosine = jnp.where(action == 1, 10.0, -10.0), jnp.sin(angle), jnp.cos(angle)
    pull = (force + 0.05 * turn**2 * sine) / 1.1
    bend = (9.8 * sine - cosine * pull) / (0.5 * (4.0 / 3.0 - 0.1 * cosine**2 / 1.1))
    gain = pull - 0.05 * bend * cosine / 1.1
    body = env.body + 0.02 * jnp.stack([speed, gain, turn, bend])
    new = CartPole(body, env.age + 1)
    ended = (jnp.abs(body[0]) > 2.4) | (jnp.abs(body[2]) > 12 * jnp.pi / 180) | (new.age >= LIMIT)
    return jax.tree.map(lambda a, b: jnp.where(ended, a, b), reset(key), new), jnp.ones(()), ended


# PPO


class ActorCritic(nn.Module):
    @nn.compact
    def __call__(self, x):
        def tower(outputs: int, scale: float):
            y = x
            for _ in range(2):
                y = nn.tanh(nn.Dense(64, kernel_init=nn.initializers.orthogonal(2**0.5))(y))
            return nn.Dense(outputs, kernel_init=nn.initializers.orthogonal(scale))(y)

        return tower(2, 0.01), tower(1, 1.0)[..., 0]


NETWORK = ActorCritic()


def policy_and_value(params: Any, body: Any) -> Any:
    """Logits of the actions, and the value."""
    return NETWORK.apply(params, body)


TX = jc.adjustable_lr(
    lambda learning_rate: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(learning_rate, eps=1e-5)),
    learning_rate=2.5e-3,
)


class Runner(NamedTuple):
    """The state of a run, as in purejaxrl; callbacks find the weights in Flax's `TrainState`."""

    train: TrainState
    env: CartPole
    returns: Any  # rewards of the running episodes, float32 (ENVS,)
    last: Any  # returns of the last finished episodes, float32 (ENVS,)
    key: Any


def start(key) -> Runner:
    key, for_weights, for_envs = jax.random.split(key, 3)
    params = NETWORK.init(for_weights, jnp.zeros(4))
    train = TrainState.create(apply_fn=NETWORK.apply, params=params, tx=TX)
    zeros = jnp.zeros(ENVS)
    return Runner(train, jax.vmap(reset)(jax.random.split(for_envs, ENVS)), zeros, zeros, key)


def act(runner: Runner, _):
    """One step of all environments."""
    key, for_action, for_env = jax.random.split(runner.key, 3)
    logits, value = policy_and_value(runner.train.params, runner.env.body)
    action = jax.random.categorical(for_action, logits)
    log_prob = jnp.take_along_axis(nn.log_softmax(logits), action[:, None], axis=1)[:, 0]
    env, reward, ended = jax.vmap(push)(runner.env, action, jax.random.split(for_env, ENVS))
    returns = runner.returns + reward
    seen = (runner.env.body, action, log_prob, value, reward, ended)
    last = jnp.where(ended, returns, runner.last)
    return Runner(runner.train, env, jnp.where(ended, 0.0, returns), last, key), seen


def loss_fn(params, batch):
    body, action, old_log_prob, old_value, gain, target = batch
    logits, value = policy_and_value(params, body)
    log_probs = nn.log_softmax(logits)
    ratio = jnp.exp(jnp.take_along_axis(log_probs, action[:, None], axis=1)[:, 0] - old_log_prob)
    gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    policy = -jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * gain).mean()
    clipped = old_value + jnp.clip(value - old_value, -CLIP, CLIP)
    critic = 0.5 * jnp.maximum((value - target) ** 2, (clipped - target) ** 2).mean()
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1).mean()
    return policy + VALUE * critic - ENTROPY * entropy


def update(runner: Runner):
    """A rollout, and some passes over it: the step that is scanned."""
    runner, (body, action, log_prob, value, reward, ended) = jax.lax.scan(act, runner, None, STEPS)
    _, after = policy_and_value(runner.train.params, runner.env.body)

    def advantage(carry, seen):
        gain, next_value = carry
        value, reward, ended = seen
        delta = reward + DISCOUNT * next_value * (1 - ended) - value
        gain = delta + DISCOUNT * TRACE * (1 - ended) * gain
        return (gain, value), gain

    _, gains = jax.lax.scan(advantage, (jnp.zeros_like(after), after), (value, reward, ended), reverse=True)
    rows = jax.tree.map(
        lambda x: x.reshape(ENVS * STEPS, *x.shape[2:]), (body, action, log_prob, value, gains, gains + value)
    )

    def one_pass(train, key):
        order = jax.random.permutation(key, ENVS * STEPS).reshape(MINIBATCHES, -1)

        def minibatch(train, index):
            loss, grads = jax.value_and_grad(loss_fn)(train.params, jax.tree.map(lambda x: x[index], rows))
            return train.apply_gradients(grads=grads), loss

        return jax.lax.scan(minibatch, train, order)

    key, for_passes = jax.random.split(runner.key)
    train, losses = jax.lax.scan(one_pass, runner.train, jax.random.split(for_passes, PASSES))
    runner = runner._replace(train=train, key=key)
    return runner, {"episode_return": runner.last.mean(), "loss": losses.mean()}


def by_hand(key, updates: int):
    """The loop that `jc.scan` replaces: no callbacks."""
    return jax.lax.scan(lambda runner, _: update(runner), start(key), None, updates)


def with_callbacks(key, updates: int):
    return jc.scan(CALLBACKS, update, start(key), updates, steps_per_epoch=EPOCH)


# A run in parts, each of which is saved


@functools.partial(jax.jit, static_argnums=1)
def begin(keys, updates: int):
    return jax.vmap(lambda key: with_callbacks(key, updates))(keys)


@functools.partial(jax.jit, static_argnums=1)
def proceed(runs, updates: int):
    return jax.vmap(lambda run: jc.scan(CALLBACKS, update, run, updates, steps_per_epoch=EPOCH))(runs)


def loaded(path: Path, shapes):
    """Reads runs from the disk; `shapes` is their form."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaves, tree = jax.tree.flatten(shapes)
    forms = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for x in leaves]
    return tree.unflatten(ocp.load(str(path.absolute()), forms))


def in_parts(run_dir: Path, keys, lengths: Sequence[int]) -> list[Any]:
    """The parts of all runs, one after the other: those on the disk are read, the others computed and written."""
    found: list[Any] = []
    for number, length in enumerate(lengths):
        path = run_dir / f"part{number}"
        part, given = (proceed, found[-1]) if found else (begin, keys)
        if path.is_dir():  # it is complete: Orbax writes to another name, and renames it at the end
            found.append(loaded(path, jax.eval_shape(functools.partial(part, updates=length), given)))
        else:
            found.append(part(given, length))
            ocp.save(str(path.absolute()), jax.tree.leaves(found[-1]))
            print(f"part {number + 1} of {len(lengths)} is saved", flush=True)
    return found


def curves(*parts) -> np.ndarray:
    """The mean return of each epoch, float (seeds, epochs); NaN after the end of a run."""
    rows = [part.records.of(jc.actions.LogHistory)[0] for part in parts]
    returns = [np.where(row.when, row.values["episode_return"], np.nan) for row in rows]
    return np.concatenate(returns, axis=1)


def main(run_dir: Path, seeds: int, updates: int, parts: int) -> Any:
    whole = updates // parts // EPOCH * EPOCH
    lengths = [whole] * (parts - 1) + [updates - whole * (parts - 1)]
    found = in_parts(run_dir, jax.random.split(jax.random.key(0), seeds), lengths)
    reasons = [jc.stop_reasons(part.records) for part in found]
    for seed, curve in enumerate(curves(*found)):
        why = next((own[seed] for own in reasons if own[seed]), "all updates done")
        print(f"seed {seed:2}: {int(found[-1].step[seed]):3} updates, best return {np.nanmax(curve):5.1f}, {why}")
    with jc.Recorder(run_dir / "seed0", callbacks=CALLBACKS, verbose=0) as recorder:
        for part in found:
            recorder.perform(jax.tree.map(lambda x: x[0], part.records))
    solved = float(np.mean(np.nanmax(curves(*found), axis=1) > 400))
    print(f"solved     {solved:.0%} of the seeds")
    print("files      " + ", ".join(str(path) for path in recorder.files))
    return found[-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=Path("runs/ppo"), help="where the files go (%(default)s)")
    parser.add_argument("--seeds", type=int, default=16, help="how many runs (%(default)s)")
    parser.add_argument("--updates", type=int, default=160, help="at most so many updates (%(default)s)")
    parser.add_argument("--parts", type=int, default=4, help="after each of them all is saved (%(default)s)")
    main(**vars(parser.parse_args()))
