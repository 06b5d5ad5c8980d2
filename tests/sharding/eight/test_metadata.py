"""Flax's own partition metadata says how a model is split."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from sharding.eight._cases import make_data, mesh

import jaxcb as jc
from jaxcb._src.sharding.placement import automatic


def loss_fn(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


class Module(nn.Module):
    """Two layers, split as tensor-parallel ones are."""

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        x = nn.Dense(32, kernel_init=nn.with_partitioning(init, (None, "model")), name="a")(x)
        return nn.Dense(1, kernel_init=nn.with_logical_partitioning(init, ("mlp", None)), name="b")(nn.tanh(x))


class Network(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        init = nnx.initializers.lecun_normal()
        self.a = nnx.Linear(64, 32, kernel_init=nnx.with_partitioning(init, (None, "model")), rngs=rngs)
        self.b = nnx.Linear(32, 1, kernel_init=nnx.with_partitioning(init, ("model", None)), rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.tanh(self.a(x)))


def make_linen(devices):
    with nn.logical_axis_rules([("mlp", "model")]):
        return jc.linen(Module(), jnp.zeros((1, 64)))


def make_nnx(devices):
    with jax.set_mesh(devices):  # NNX places what has metadata where it is made
        return Network(nnx.Rngs(0))


@pytest.mark.everyday(1)
@pytest.mark.parametrize("make", [make_linen, make_nnx])
def test_the_metadata_places_parameters_and_moments(make):
    devices = mesh(4, 2, names=("data", "model"))
    given = {"optimizer": optax.adam, "learning_rate": 0.01, "epochs": 2, "batch_size": 32, "verbose": 0}
    with nn.logical_axis_rules([("mlp", "model")]):
        found = jc.fit(make(automatic(devices)), loss_fn, make_data(), execution=jc.Execution(mesh=devices), **given)
    one = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    with nn.logical_axis_rules([("mlp", "model")]):
        expected = jc.fit(make(one), loss_fn, make_data(), execution=jc.Execution(mesh=one), **given)
    np.testing.assert_allclose(found.history["loss"], expected.history["loss"], rtol=1e-5)
    specs = [x.sharding.spec for x in jax.tree.leaves((found.params, found.state.opt_state)) if x.ndim == 2]
    # each kernel and its two moments
    assert sum(spec == P(None, "model") for spec in specs) == 3, specs
    assert sum(tuple(spec)[:1] == ("model",) for spec in specs) == 3, specs
    replicated = jc.fit(
        make(automatic(devices)),
        loss_fn,
        make_data(),
        execution=jc.Execution(mesh=devices, sharding="replicated"),
        **given,
    )
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(replicated.params))


def test_metadata_of_an_axis_that_the_mesh_does_not_have():
    model = jc.linen(Module(), jnp.zeros((1, 64)))
    with pytest.raises(ValueError, match=r"a/kernel.*no axis 'model'.*sharding='replicated'"):
        jc.fit(
            model,
            loss_fn,
            make_data(),
            optimizer=optax.sgd(0.1),
            epochs=1,
            verbose=0,
            execution=jc.Execution(mesh=mesh()),
        )
