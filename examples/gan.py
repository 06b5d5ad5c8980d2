"""A GAN: two networks, two losses and two optimizers in one `jc.Step`.

    python examples/gan.py --run-dir runs/gan

The generator turns noise into points of the plane, the discriminator tells them from points of eight Gaussians on a
ring. The losses of a GAN say little about how good it is, so callbacks decide by a distance between the generated and
the real points (sliced Wasserstein). As is usual with GANs, it is an average of the generator's weights that is
validated and kept: `SwapEMAWeights`. `by_hand` is the loop that the step replaces.
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


def adam(rate: float):
    return optax.adam(rate, b1=0.0, b2=0.99)


# An optimizer for each network. The name of a rate is that in metrics and logs, and of `of=` in callbacks.
RATES = {"generator": 5e-4, "discriminator": 1e-3}
OPTIMIZER = optax.partition(
    {name: jc.adjustable_lr(adam, learning_rate=rate, name=name) for name, rate in RATES.items()},
    {name: name for name in RATES},
)


def new_state(seed: int) -> jc.TrainState:
    params = {
        "generator": nnx.state(MLP(NOISE, 2, nnx.Rngs(seed))),
        "discriminator": nnx.state(MLP(2, 1, nnx.Rngs(seed + 1))),
    }
    return jc.TrainState.create(params=params, tx=OPTIMIZER, seed=seed)


def generator_loss(weights, discriminator, key, real):
    fake = generate(weights, key, len(real))
    return jnp.mean(nnx.softplus(-judge(discriminator, fake)))


def discriminator_loss(weights, generator, key, real):
    slopes = jax.grad(lambda x: judge(weights, x).sum())(real)  # R1: a flat opinion around real points is stable
    penalty = 0.02 * jnp.mean(jnp.sum(slopes**2, axis=1))
    fake = generate(generator, key, len(real))
    return jnp.mean(nnx.softplus(-judge(weights, real)) + nnx.softplus(judge(weights, fake))) + penalty


def gradients(state: jc.TrainState, real):
    """Two losses: each network has the gradients of its own."""
    keys, (generator, discriminator) = jax.random.split(state.step_key()), (state.params[name] for name in RATES)
    g_loss, g_grads = jax.value_and_grad(generator_loss)(generator, discriminator, keys[0], real)
    d_loss, d_grads = jax.value_and_grad(discriminator_loss)(discriminator, generator, keys[1], real)
    values = {"generator_loss": g_loss, "discriminator_loss": d_loss, "loss": g_loss + d_loss}
    return {"generator": g_grads, "discriminator": d_grads}, values


train_step = jc.Step.from_gradients(gradients)


def by_hand(state: jc.TrainState, batches):
    """The loop that `jc.Loop(train_step)` replaces: new params, and the two losses of each step."""
    generator, discriminator = (state.params[name] for name in RATES)
    g_adam, d_adam = map(adam, RATES.values())
    g_state, d_state = g_adam.init(generator), d_adam.init(discriminator)

    @jax.jit
    def step(generator, discriminator, g_state, d_state, number, real):
        keys = jax.random.split(jax.random.fold_in(state.key, number))
        g_loss, g_grads = jax.value_and_grad(generator_loss)(generator, discriminator, keys[0], real)
        d_loss, d_grads = jax.value_and_grad(discriminator_loss)(discriminator, generator, keys[1], real)
        g_updates, g_state = g_adam.update(g_grads, g_state)
        d_updates, d_state = d_adam.update(d_grads, d_state)
        generator = optax.apply_updates(generator, g_updates)
        discriminator = optax.apply_updates(discriminator, d_updates)
        return generator, discriminator, g_state, d_state, (g_loss, d_loss)

    losses = []
    for number, real in enumerate(batches):
        generator, discriminator, g_state, d_state, both = step(
            generator, discriminator, g_state, d_state, number, real
        )
        losses.append([float(loss) for loss in both])
    return {"generator": generator, "discriminator": discriminator}, losses


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
