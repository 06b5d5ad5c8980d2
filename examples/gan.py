"""A GAN: two networks, two optimizers, and a training step of one's own in `jc.Loop`.

    python examples/gan.py --run-dir runs/gan

The generator turns noise into points of the plane, the discriminator tells them from points of eight Gaussians on a
ring. The losses of a GAN say little about how good it is, so callbacks decide by a distance between the generated and
the real points (sliced Wasserstein). As is usual with GANs, it is an average of the generator's weights that is
validated and kept: `SwapEMAWeights`.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxcb as jc

MODES, SPREAD, NOISE = 8, 0.05, 8
ANGLES = 2 * np.pi * np.arange(MODES) / MODES
CENTRES = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def ring(points: int, seed: int) -> np.ndarray:
    """Draws points of the eight Gaussians, float32 (points, 2)."""
    rng = np.random.default_rng(seed)
    noise = SPREAD * rng.normal(size=(points, 2))
    return (CENTRES[rng.integers(MODES, size=points)] + noise).astype(np.float32)


class MLP(nnx.Module):
    """Three hidden layers."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        widths = (inputs, 128, 128, 128)
        self.hidden = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(widths)])
        self.out = nnx.Linear(widths[-1], outputs, rngs=rngs)

    def __call__(self, x):
        for layer in self.hidden:
            x = nnx.leaky_relu(layer(x), 0.2)
        return self.out(x)


# A network is a structure, which never changes, and weights, which `train_step` gets and returns.
GENERATOR, _ = nnx.split(MLP(NOISE, 2, nnx.Rngs(0)))
DISCRIMINATOR, _ = nnx.split(MLP(2, 1, nnx.Rngs(0)))


def generate(weights, key, points: int):
    return nnx.merge(GENERATOR, weights)(jax.random.normal(key, (points, NOISE)))


def judge(weights, x):
    """The discriminator's opinion, above 0 for what it takes for real."""
    return nnx.merge(DISCRIMINATOR, weights)(x)[:, 0]


# `adjustable_lr` lets callbacks read and scale the rate; what scales it scales both.
OPTIMIZERS = {
    "generator": jc.adjustable_lr(lambda rate: optax.adam(rate, b1=0.0, b2=0.99), learning_rate=5e-4),
    "discriminator": jc.adjustable_lr(lambda rate: optax.adam(rate, b1=0.0, b2=0.99), learning_rate=1e-3),
}


def new_state(seed: int) -> jc.TrainState:
    params = {
        "generator": nnx.state(MLP(NOISE, 2, nnx.Rngs(seed))),
        "discriminator": nnx.state(MLP(2, 1, nnx.Rngs(seed + 1))),
    }
    opt_state = {name: tx.init(params[name]) for name, tx in OPTIMIZERS.items()}
    return jc.TrainState.create(params=params, opt_state=opt_state, seed=seed)


def update(name: str, loss_fn, params, opt_state):
    """One step of one network: new params, new optimizer states, and its loss."""
    loss, grads = jax.value_and_grad(lambda own: loss_fn({**params, name: own}))(params[name])
    updates, state = OPTIMIZERS[name].update(grads, opt_state[name], params[name])
    return {**params, name: optax.apply_updates(params[name], updates)}, {**opt_state, name: state}, loss


def train_step(state: jc.TrainState, real):
    """The discriminator's turn, then the generator's."""
    keys = jax.random.split(state.step_key())

    def discriminator_loss(params):
        weights, fake = params["discriminator"], generate(params["generator"], keys[0], len(real))
        slopes = jax.grad(lambda x: judge(weights, x).sum())(real)  # R1: a flat opinion around real points is stable
        penalty = 0.02 * jnp.mean(jnp.sum(slopes**2, axis=1))
        return jnp.mean(nnx.softplus(-judge(weights, real)) + nnx.softplus(judge(weights, fake))) + penalty

    def generator_loss(params):
        fake = generate(params["generator"], keys[1], len(real))
        return jnp.mean(nnx.softplus(-judge(params["discriminator"], fake)))

    params, opt_state, d_loss = update("discriminator", discriminator_loss, state.params, state.opt_state)
    params, opt_state, g_loss = update("generator", generator_loss, params, opt_state)
    new = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return new, {"discriminator_loss": d_loss, "generator_loss": g_loss}


def distance(a, b):
    """Sliced Wasserstein: how far points move from one set to the other, seen from 32 sides."""
    angles = jnp.linspace(0.0, jnp.pi, 32, endpoint=False)
    sides = jnp.stack([jnp.cos(angles), jnp.sin(angles)])
    return jnp.mean(jnp.abs(jnp.sort(a @ sides, axis=0) - jnp.sort(b @ sides, axis=0)))


def eval_step(state: jc.TrainState, real):
    fake = generate(state.params["generator"], jax.random.key(0), len(real))
    near = jnp.linalg.norm(fake[:, None] - CENTRES[None], axis=-1) < 3 * SPREAD
    return {
        "distance": distance(fake, real),
        "modes": jnp.sum(jnp.mean(near, axis=0) > 0.25 / MODES),  # those with a quarter of their share, at least
        "on_target": jnp.mean(jnp.any(near, axis=1)),
    }


def picture(*sets: np.ndarray, width: int = 36, height: int = 18) -> str:
    """Draws sets of points side by side, for the terminal."""
    panels = []
    for points in sets:
        counts, *_ = np.histogram2d(-points[:, 1], points[:, 0], (height, width), ((-1.3, 1.3), (-1.3, 1.3)))
        level = np.minimum(np.sqrt(counts / 2), 4).astype(int)
        panels.append(["".join(" .:*#"[i] for i in row) for row in level])
    return "\n".join("  ".join(rows).rstrip() for rows in zip(*panels, strict=True))


def main(run_dir: Path, epochs: int, seed: int) -> jc.Result:
    validation = ring(2048, seed=2)
    loop = jc.Loop(
        train_step,
        eval_step,
        callbacks=[
            jc.SwapEMAWeights(decay=0.99),
            jc.EarlyStopping("val_distance", mode="min", patience=12, restore_best_weights=True),
            jc.CSVLogger("log.csv"),
        ],
    )
    result = loop.run(
        new_state(seed),
        ring(16384, seed=1),
        epochs=epochs,
        batch_size=256,
        validation_data=validation,
        validation_batch_size=len(validation),  # the distance is one between whole sets
        run_dir=run_dir,
        seed=seed,
        checkpointing=jc.Checkpointing(overwrite=True),
    )
    end = {name: float(value) for name, value in eval_step(result.state, validation).items()}
    points = np.asarray(generate(result.params["generator"], jax.random.key(0), len(validation)))
    print(picture(validation, points))
    print(f"{'real':^36}  {'generated':^36}")
    print(f"end        {result.stop_reason or 'all epochs done'}")
    print(f"modes      {end['modes']:.0f} of {MODES}, {end['on_target']:.1%} of the points are near one")
    apart = float(distance(ring(2048, seed=3), validation))
    print(f"distance   {end['distance']:.4f}; two draws of real points are {apart:.4f} apart")
    print("files      " + ", ".join(str(path) for path in result.files))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=Path("runs/gan"), help="where the files go (%(default)s)")
    parser.add_argument("--epochs", type=int, default=60, help="at most so many epochs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the noise and the order of the data")
    main(**vars(parser.parse_args()))
