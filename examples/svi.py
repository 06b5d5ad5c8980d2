"""Variational inference of a Bayesian regression: a run without data, compiled as a whole.

    python examples/svi.py --run-dir runs/svi

A mean-field Gaussian is fitted to the posterior of the weights by stochastic gradients of the evidence lower bound
(D. Kingma and M. Welling, "Auto-Encoding Variational Bayes", 2014). The bound is noisy, so callbacks decide by its mean
over an epoch of steps: the rate is cut when it no longer improves, and then the run stops. The prior and the noise are
Gaussian, so the posterior is known exactly, and tells how good the result is. Four restarts run in one program.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcb as jc

ROWS, WEIGHTS, NOISE, SAMPLES = 60, 5, 0.5, 8
EPOCH = 100  # steps
TX = jc.adjustable_lr(optax.adam, learning_rate=0.05)
CALLBACKS = [
    jc.ReduceLROnPlateau("neg_elbo", mode="min", factor=0.3, patience=2, min_delta=0.02),
    jc.EarlyStopping("neg_elbo", mode="min", patience=6, min_delta=0.02, restore_best_weights=True),
    jc.CSVLogger("log.csv"),
]


def make_data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, WEIGHTS)).astype(np.float32)
    y = x @ np.linspace(-1.0, 1.0, WEIGHTS) + NOISE * rng.normal(size=ROWS)
    return x, y.astype(np.float32)


X, Y = make_data()


def exact_posterior() -> tuple[np.ndarray, np.ndarray]:
    """Mean of the weights, and their standard deviations if the others are known, which a mean-field fit finds."""
    precision = np.eye(WEIGHTS) + X.T @ X / NOISE**2
    return np.linalg.solve(precision, X.T @ Y / NOISE**2), 1.0 / np.sqrt(np.diag(precision))


def neg_elbo(params: Any, key: jax.Array) -> jax.Array:
    """The negative evidence lower bound, by samples of the weights."""
    scale = jnp.exp(params["log_scale"])
    weights = params["mean"] + scale * jax.random.normal(key, (SAMPLES, WEIGHTS))
    log_likelihood = -0.5 * jnp.sum(((weights @ X.T - Y) / NOISE) ** 2, axis=1) - ROWS * jnp.log(NOISE)
    divergence = 0.5 * jnp.sum(scale**2 + params["mean"] ** 2 - 1.0) - jnp.sum(params["log_scale"])
    return divergence - log_likelihood.mean()


def start(seed: Any) -> jc.TrainState:
    key = jax.random.key(seed)
    params = {"mean": jax.random.normal(key, (WEIGHTS,)), "log_scale": jnp.zeros(WEIGHTS)}
    return jc.TrainState.create(params=params, tx=TX, seed=key)


def step(state: jc.TrainState) -> tuple[jc.TrainState, dict[str, jax.Array]]:
    loss, grads = jax.value_and_grad(neg_elbo)(state.params, state.step_key())
    return state.apply_gradients(grads), {"neg_elbo": loss}


def by_hand(seed: Any, steps: int) -> tuple[jc.TrainState, jax.Array]:
    """The loop that `jc.scan` replaces: no callbacks."""
    state, values = jax.lax.scan(lambda state, _: step(state), start(seed), None, steps)
    return state, values["neg_elbo"]


def infer(seed: Any, steps: int) -> Any:
    return jc.scan(CALLBACKS, step, start(seed), steps, steps_per_epoch=EPOCH)


def main(run_dir: Path, restarts: int, steps: int) -> Any:
    runs = jax.jit(jax.vmap(infer, in_axes=(0, None)), static_argnums=1)(jnp.arange(restarts), steps)
    mean, scale = exact_posterior()
    for index, reason in enumerate(jc.stop_reasons(runs.records)):
        params = jax.tree.map(lambda x, i=index: np.asarray(x[i]), runs.state.params)
        apart = np.max(np.abs(params["mean"] - mean) / scale)
        wider = np.max(np.abs(np.exp(params["log_scale"]) / scale - 1.0))
        print(f"restart {index}: {int(runs.step[index])} steps, {reason or 'all steps done'}")
        print(f"           means {apart:.3f} deviations from the exact ones, deviations right to {wider:.1%}")
    with jc.Recorder(run_dir, callbacks=CALLBACKS, verbose=0) as recorder:
        recorder.perform(jax.tree.map(lambda x: x[0], runs.records))
    print("files      " + ", ".join(str(path) for path in recorder.files))
    return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=Path("runs/svi"), help="where the files go (%(default)s)")
    parser.add_argument("--restarts", type=int, default=4, help="how many runs (%(default)s)")
    parser.add_argument("--steps", type=int, default=6000, help="at most so many steps (%(default)s)")
    main(**vars(parser.parse_args()))
