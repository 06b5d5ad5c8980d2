"""One small network in each library, with all that a model may carry, behind its adapter."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

from jaxcb._src.models.linen import linen
from jaxcb._src.models.pytree import with_state
from jaxcb.models import adapt


class NNXNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.norm(self.conv(x))).mean((1, 2))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)).mean((1, 2))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class EquinoxNet(eqx.Module):
    hidden: eqx.nn.Linear
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear
    activation: Callable[..., Any]

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.hidden = eqx.nn.Linear(36, 5, key=a)
        self.drop = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(5, 3, key=b)
        self.activation = jax.nn.relu

    def __call__(self, x, *, key=None):
        return self.head(self.drop(self.activation(self.hidden(x.ravel())), key=key))


class EquinoxNormNet(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.hidden = eqx.nn.Linear(36, 5, key=a)
        self.norm = eqx.nn.BatchNorm(5, axis_name="batch", mode="batch", momentum=0.5)
        self.head = eqx.nn.Linear(5, 3, key=b)

    def __call__(self, x, state):
        x, state = self.norm(self.hidden(x.ravel()), state)
        return self.head(x), state


@dataclass
class Case:
    """An adapter with a loss function and a batch; `loss` returns `(loss, new state or None)`."""

    adapter: Any
    loss: Callable[..., Any]
    batch: Any

    @cached_property
    def compiled(self) -> Any:
        """`step`, compiled once for all tests."""
        return jax.jit(self.step)

    def after(self, parts: Any, key: Any, *, train: bool = True) -> Any:
        """Loss and gradients, and the parts that the forward pass left."""
        params, model_state, rngs = parts

        def loss(params):
            model = self.adapter.merge(params, model_state, rngs, train=train, key=key)
            state = jax.tree.map(lambda x: x, model_state)
            value, state = self.loss(model, self.batch, key=key, state=state)
            if self.adapter.explicit_state:
                return value, (state, rngs)
            return value, self.adapter.carried(model)

        (value, (model_state, rngs)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, grads, model_state, rngs

    def step(self, parts: Any, key: Any) -> Any:
        """One update by plain gradient descent."""
        value, grads, model_state, rngs = self.after(parts, key)
        params = optax.apply_updates(parts[0], jax.tree.map(lambda g: -0.1 * g, grads))
        return (params, model_state, rngs), value


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def call_loss(model, batch, *, key, state):
    return cross_entropy(model(batch["x"]), batch["y"]), None


def equinox_loss(model, batch, *, key, state):
    logits = jax.vmap(lambda x, k: model(x, key=k))(batch["x"], jax.random.split(key, len(batch["x"])))
    return cross_entropy(logits, batch["y"]), None


def equinox_state_loss(model, batch, *, key, state):
    forward = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    logits, state = forward(batch["x"], state)
    return cross_entropy(logits, batch["y"]), state


def dict_loss(params, batch, *, key, state):
    logits = batch["x"].reshape(len(batch["x"]), -1) @ params["w"] + params["b"][None]
    return cross_entropy(logits, batch["y"]), None if state is None else {"seen": state["seen"] + len(logits)}


def make_params():
    return {"w": 0.1 * jax.random.normal(jax.random.key(1), (36, 3)), "b": jnp.zeros(3)}


def make_batch():
    x = jax.random.normal(jax.random.key(7), (6, 6, 6, 1))
    return {"x": x, "y": jnp.arange(6) % 3}


CASES = {
    "nnx": lambda b: Case(adapt(NNXNet(nnx.Rngs(0)), copy=True), call_loss, b),
    "linen": lambda b: Case(linen(LinenNet(), b["x"]), call_loss, b),
    "equinox": lambda b: Case(adapt(EquinoxNet(jax.random.key(0))), equinox_loss, b),
    "equinox_state": lambda b: Case(
        with_state(*eqx.nn.make_with_state(EquinoxNormNet)(jax.random.key(0))), equinox_state_loss, b
    ),
    "dict": lambda b: Case(adapt(make_params()), dict_loss, b),
    "dict_state": lambda b: Case(with_state(make_params(), {"seen": 0}), dict_loss, b),
}


@pytest.fixture(params=list(CASES), scope="session")
def case(request) -> Case:
    return CASES[request.param](make_batch())


@pytest.fixture
def batch() -> Any:
    return make_batch()


@pytest.fixture
def nets() -> Any:
    """The network classes and helpers, for tests of one library."""

    class Names:
        nnx, linen, equinox, equinox_norm = NNXNet, LinenNet, EquinoxNet, EquinoxNormNet
        cross_entropy = staticmethod(cross_entropy)
        params = staticmethod(make_params)

    return Names
