"""A physics-informed network: Adam first, then L-BFGS, each until it no longer improves.

    python examples/pinn.py

The network is to solve u'' = -k^2 sin(k x) on [0, 1] with u = sin(k x) at both ends (M. Raissi et al., 2019), so its
loss is the residual of the equation at fixed points, and there is no data. Adam finds the region, and the second order
of L-BFGS the rest. Each is one `jc.scan` over `jc.Step(loss_fn)`, whose loss function gets None for its batch; the
line search of L-BFGS gets what its signature asks for.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcb as jc

K, POINTS, WIDTH = 2 * np.pi, 48, 24
INSIDE = jnp.linspace(0.0, 1.0, POINTS)
ENDS = jnp.asarray([0.0, 1.0])
EPOCH = 50  # steps

ADAM = jc.adjustable_lr(optax.adam, learning_rate=3e-3)
LBFGS = optax.lbfgs(memory_size=20)
FOR_ADAM = [
    jc.ReduceLROnPlateau("loss", factor=0.5, patience=4),
    jc.EarlyStopping("loss", patience=10, min_delta=0.02, threshold_mode="rel", restore_best_weights=True),
    jc.TerminateOnNaN(),
]
FOR_LBFGS = [
    jc.EarlyStopping("loss", patience=3, min_delta=0.02, threshold_mode="rel", restore_best_weights=True),
    jc.TerminateOnNaN(),
]


def network(seed: Any) -> list[dict[str, jax.Array]]:
    sizes = [1, WIDTH, WIDTH, 1]
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [{"w": jax.random.normal(k, (a, b)) / np.sqrt(a), "b": jnp.zeros(b)} for k, a, b in shapes]


def u(params: Any, x: jax.Array) -> jax.Array:
    """The network at one point."""
    y = K * x[None]
    for layer in params[:-1]:
        y = jnp.tanh(y @ layer["w"] + layer["b"])
    return (y @ params[-1]["w"] + params[-1]["b"])[0]


def loss_fn(params: Any, batch: None) -> jax.Array:
    """Residual of the equation and of its boundary values."""
    del batch
    bend = jax.vmap(jax.grad(jax.grad(lambda x: u(params, x))))(INSIDE)
    ends = jax.vmap(lambda x: u(params, x))(ENDS)
    return jnp.mean((bend / K**2 + jnp.sin(K * INSIDE)) ** 2) + 10 * jnp.mean((ends - jnp.sin(K * ENDS)) ** 2)


def error(params: Any) -> float:
    """The largest deviation from the solution."""
    x = jnp.linspace(0.0, 1.0, 501)
    return float(jnp.max(jnp.abs(jax.vmap(lambda x: u(params, x))(x) - jnp.sin(K * x))))


def train(params: Any, tx: optax.GradientTransformation, callbacks: Any, steps: int) -> Any:
    state = jc.TrainState.create(params=params, tx=tx)
    return jc.scan(callbacks, jc.Step(loss_fn), state, steps, steps_per_epoch=EPOCH)


def by_hand(params: Any, tx: Any, steps: int) -> tuple[Any, jax.Array]:
    """The loop that `jc.scan` replaces: no callbacks."""
    value_and_grad: Callable[..., Any] = optax.value_and_grad_from_state(lambda p: loss_fn(p, None))

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        if tx is LBFGS:
            value, grads = value_and_grad(params, state=state)
            updates, state = tx.update(
                grads, state, params, value=value, grad=grads, value_fn=lambda p: loss_fn(p, None)
            )
        else:
            value, grads = jax.value_and_grad(loss_fn)(params, None)
            updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), None, steps)
    return params, losses


def main(seed: int, steps: int, fine_steps: int) -> float:
    params, parts = network(seed), (("adam", ADAM, FOR_ADAM, steps), ("l-bfgs", LBFGS, FOR_LBFGS, fine_steps))
    print(f"start      error {error(params):.1e}")
    for name, tx, callbacks, most in parts:
        run = jax.jit(lambda p, tx=tx, own=callbacks, most=most: train(p, tx, own, most))(params)
        params = run.state.params
        print(
            f"{name:10} error {error(params):.1e}, loss {float(loss_fn(params, None)):.1e}, {int(run.step)} steps, "
            f"{jc.stop_reasons(run.records) or 'all steps done'}"
        )
    return error(params)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0, help="of the weights (%(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="at most so many steps of Adam (%(default)s)")
    parser.add_argument("--fine-steps", type=int, default=1500, help="at most so many of L-BFGS (%(default)s)")
    main(**vars(parser.parse_args()))
