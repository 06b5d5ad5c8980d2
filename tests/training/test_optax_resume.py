"""Optimizers that ask for more than gradients, or keep more than moments: they resume, and train in a population."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _arguments import grouped
from training._optax_all import SPECIAL, build

import jaxcb as jc

KINDS = {
    "lbfgs": {"batch_size": 8},
    "contrib.sophia": {},
    "contrib.sam": {},
    "contrib.sam, opaque": {},
    "lookahead": {},
    "contrib.schedule_free": {},
}
EVERY_DAY = ("contrib.sam", "contrib.schedule_free", "lookahead")
SOME = [kind if kind in EVERY_DAY else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
EXECUTORS = ("looped", "stepped")
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = X @ np.float32([1.0, -2.0, 0.5]) + 0.25
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Specifying a key:UserWarning"),
    pytest.mark.usefixtures("as_optax_promotes"),
]


@pytest.fixture
def as_optax_promotes():
    """optax multiplies arrays of different ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


def start(kind):
    params = {"w": jnp.full((3, 1), 0.5), "b": jnp.full((1,), 0.1)}
    return optax.LookaheadParams.init_synced(params) if kind == "lookahead" else params


def loss_fn(params, batch):
    params = getattr(params, "fast", params)
    x, y = batch
    return jnp.mean((jnp.squeeze(x @ params["w"], -1) + params["b"] - y) ** 2)


def fit(kind, **changes):
    given = {"optimizer": build(SPECIAL[kind]), "epochs": 4, "batch_size": 4, "verbose": 0, "validation_data": (X, Y)}
    given["callbacks"] = [CutAfter()] if "run_dir" in changes else []
    return jc.fit(start(kind), loss_fn, (X, Y), **grouped(**(given | KINDS[kind] | changes)))


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


class Cut(Exception):
    """Ends a run as a crash would."""


class CutAfter(jc.Callback):
    """Saves after a step, and cuts the run after the next one. Without a cut the program is the same."""

    at: int = 1000

    def on_batch_end(self, state, metrics):
        return state, (
            jc.actions.Backup(when=metrics.step == self.at),
            jc.actions.Call(_cut, when=metrics.step > self.at),
        )


def _cut(run):
    raise Cut


@pytest.mark.parametrize("executor", [EXECUTORS[0], pytest.param(EXECUTORS[1], marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", SOME)
def test_it_resumes_bit_for_bit(kind, executor, tmp_path):
    at = 1 if kind == "lbfgs" else 3  # in the middle of an accumulation, of a pair of steps, of an epoch
    whole = fit(kind, executor=executor, run_dir=tmp_path / "whole")
    with pytest.raises(Cut):
        fit(kind, executor=executor, run_dir=tmp_path / "cut", callbacks=[CutAfter(at=at)])
    found = fit(kind, executor=executor, run_dir=tmp_path / "cut", resume=True)
    assert bits((found.params, found.state.opt_state)) == bits((whole.params, whole.state.opt_state))
    assert bits(found.model) == bits(whole.model)
    assert (tmp_path / "cut" / "history.csv").read_text() == (tmp_path / "whole" / "history.csv").read_text()


@pytest.mark.parametrize("kind", SOME)
def test_members_of_a_population_are_as_runs_alone(kind):
    given = {"optimizer": build(SPECIAL[kind]), "epochs": 2, "batch_size": 4, "verbose": 0, "validation_data": (X, Y)}
    given |= KINDS[kind]
    members = jc.sweep(start(kind), loss_fn, (X, Y), over={"seed": [0, 3]}, **given)
    for seed, member in zip((0, 3), members, strict=True):
        alone = fit(kind, epochs=2, seed=seed)
        for name in ("loss", "val_loss"):
            np.testing.assert_allclose(member.history[name], alone.history[name], rtol=1e-3, err_msg=name)
