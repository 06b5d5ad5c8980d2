"""`adapt` finds the adapter, imports nothing that is not in use, and says what it cannot take."""

import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxcb as jc
from jaxcb._src.models.pytree import Pytree, with_state
from jaxcb.models import adapt


def test_two_steps_of_a_dict_are_optax_own(nets, batch):
    adapter, tx = adapt(nets.params()), optax.sgd(1e-2)

    def loss(params):
        return nets.cross_entropy(batch["x"].reshape(6, -1) @ params["w"] + params["b"][None], batch["y"])

    state = jc.TrainState.create(params=adapter.split()[0], tx=tx, adapter=adapter)
    params = nets.params()
    opt_state = tx.init(params)
    for _ in range(2):
        grads = jax.grad(lambda p, s=state: loss(s.replace(params=p).model(train=True)))(state.params)
        state = state.apply_gradients(grads, model=state.model(train=True))
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        params = optax.apply_updates(params, updates)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)


@pytest.mark.parametrize("tree", [{"w": jnp.ones(2), "b": 0.5}, [np.ones(2, np.float32)], jnp.ones(3)])
def test_pytrees_of_floats(tree):
    params, model_state, rngs = adapt(tree).split()
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    assert (model_state, rngs) == (None, None)


def test_complex_and_small_floats_are_trained():
    params, *_ = adapt({"a": jnp.ones(2, jnp.complex64), "b": jnp.ones(2, jnp.bfloat16)}).split()
    assert params["a"].dtype == jnp.complex64


def test_a_pytree_that_can_be_called():
    class Line(jc.Struct):
        slope: jax.Array

        def __call__(self, x):
            return self.slope * x

    adapter = adapt(Line(jnp.ones(())))
    np.testing.assert_array_equal(adapter.call(adapter.merge(*adapter.split(), train=False), jnp.ones(2)), [1, 1])


def test_state_goes_its_own_way():
    adapter = with_state({"w": jnp.ones(2)}, {"seen": 0})
    assert adapter.explicit_state
    params, state, _ = adapter.split()
    assert state["seen"].dtype == jnp.int32
    assert adapter.carried(adapter.merge(params, state, None, train=True)) == (None, None)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"w": jnp.ones(2), "n": jnp.zeros((), jnp.int32)}, r"leaf n of dtype int32.*jc\.with_state"),
        ({"a": {"flag": True}}, "leaf a/flag of dtype bool"),
        ({"key": jax.random.key(0)}, "leaf key of dtype key"),
        ({"f": jnp.tanh, "w": jnp.ones(1)}, "leaf f, a"),
        ([jnp.ones(2), "relu"], r"leaf 1, a builtins\.str"),
        (nn.Dense(3), r"Dense, a Flax Linen module without parameters.*jc\.linen\(Dense"),
        (nnx.Linear, r"the class Linear, expected an instance"),
        (object(), r"is a builtins\.object\. Accepted are a Flax NNX module, jc\.linen"),
        (lambda x: x, r"is a builtins\.function\. Accepted"),
    ],
)
def test_what_cannot_be_trained(model, message):
    with pytest.raises(TypeError, match=message):
        adapt(model)


def test_more_errors():
    for empty in ({}, None, []):
        with pytest.raises(ValueError, match="no parameters to train"):
            adapt(empty)
    with pytest.raises(TypeError, match=r"holds Flax NNX modules.*nnx\.Dict"):
        adapt({"a": nnx.Linear(1, 1, rngs=nnx.Rngs(0))})
    with pytest.raises(TypeError, match=r"module of flax\.nnx, whose state is kept"):
        with_state(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), {"n": 0})
    with pytest.raises(TypeError, match="state without arrays"):
        with_state({"w": jnp.ones(1)}, {})
    with pytest.raises(TypeError, match="contains a str"):
        with_state({"w": jnp.ones(1)}, {"name": "x"})


def test_nothing_is_imported_that_is_not_in_use():
    code = (
        "import sys, jax.numpy as jnp\n"
        "import jaxcb._src.models.linen\n"
        "from jaxcb.models import adapt\n"
        "adapt({'w': jnp.zeros(1)})\n"
        "print([m for m in ('flax', 'equinox') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_pytree_adapter_by_name():
    assert isinstance(adapt({"w": jnp.ones(1)}), Pytree)
