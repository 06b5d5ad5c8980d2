"""Graphs: what is drawn of a jaxpr, and where each operation stands."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.extend import core

import jaxcb as jc
from jaxcb._src.inspection.graph.draw import draw, input_names
from jaxcb._src.inspection.traced_step import TracedStep
from jaxcb.models import adapt

X, Y = jnp.ones((5, 8)), jnp.zeros((5, 1))


def by_name(nodes):
    assert len({node.name for node in nodes}) == len(nodes)
    seen = set()
    for node in nodes:
        assert {name.split(":")[0] for name in node.inputs} <= seen, "each stands behind those that it uses"
        seen.add(node.name)
    scopes = {name[:i] for name in seen for i, letter in enumerate(name) if letter == "/"}
    assert not scopes & seen, "no operation is called as a module is"
    return {node.name: node for node in nodes}


def of_step(model, loss_fn, batch=(X, Y)):
    """The nodes of a training step's loss, with gradients and optimizer in the trace."""
    adapter = adapt(model)
    params, model_state, rngs = adapter.split()
    state = jc.TrainState.create(
        params=params, model_state=model_state, rngs=rngs, adapter=adapter, tx=optax.adam(1e-3)
    )
    traced = jax.jit(jc.Step(loss_fn).compute_update).trace(state, batch)
    step = TracedStep.of(traced, state, batch, lambda out: out.gradients.values)
    names = input_names(step.jaxpr, ("", state), ("batch", batch))
    return by_name(draw(step.jaxpr, names, {"loss": step.metrics["loss"]}))


def squares(model, batch):
    x, y = batch
    return jnp.mean((model(x) - y) ** 2)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.dense = nnx.Linear(6, 6, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.drop(nnx.relu(self.dense(self.norm(x))))


class Deep(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Linear(8, 6, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(3)])
        self.out = nnx.Linear(6, 1, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def test_modules_of_nnx_have_the_names_of_their_attributes():
    nodes = of_step(Deep(nnx.Rngs(0)), squares)
    for i, before in enumerate(["Deep/embed/add", "Deep/blocks/0/add", "Deep/blocks/1/add"]):
        room = f"Deep/blocks/{i}"
        assert nodes[f"{room}/dense/dot_general"].inputs == (f"{room}/norm/add_1", f"{room}/dense/kernel")
        assert nodes[f"{room}/relu/max"].inputs == (f"{room}/dense/add",)
        assert nodes[f"{room}/drop/select_n"].inputs[-1] == f"{room}/drop/div"
        assert nodes[f"{room}/add"].inputs == (before, f"{room}/drop/select_n")
        assert nodes[f"{room}/drop/rngs/count"].op == "State"
    assert nodes["Deep/out/dot_general"].inputs == ("Deep/blocks/2/add", "Deep/out/kernel")
    assert nodes["Deep/embed/kernel"].op == "Parameter"
    assert nodes["Deep/embed/kernel"].results == (((8, 6), "float32"),)
    assert nodes["Deep/embed/dot_general"].results == (((5, 6), "float32"),)
    assert {node.op for node in nodes.values() if not node.inputs} >= {"Parameter", "State", "Input"}
    assert nodes["loss"].results == (((), "float32"),)
    assert not any("adam" in name or "opt_state" in name for name in nodes), "of the backward pass nothing is left"


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(6, name="hidden")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        with jax.named_scope("head"):
            return nn.Dense(1)(x)


def test_modules_of_linen_have_the_names_that_linen_gives():
    nodes = of_step(jc.linen(LinenNet(), X), squares)
    assert nodes["LinenNet/hidden/dot_general"].inputs == ("batch/0", "LinenNet/hidden/kernel")
    assert nodes["LinenNet/relu/max"].inputs == ("LinenNet/hidden/add",)
    assert any(name.startswith("LinenNet/Dropout_0/") for name in nodes)
    (out,) = (name for name in nodes if name.endswith("Dense_0/dot_general"))
    assert nodes[out].inputs[0] == "LinenNet/Dropout_0/select_n"
    assert "head" in out.split("/"), "named scopes are kept"


class EquinoxNet(eqx.Module):
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __call__(self, x):
        return self.out(jax.nn.relu(self.hidden(x)))


def test_modules_of_equinox_have_the_names_of_their_fields():
    one, two = jax.random.split(jax.random.key(0))
    model = EquinoxNet(eqx.nn.Linear(8, 6, key=one), eqx.nn.Linear(6, 1, key=two))
    nodes = of_step(model, lambda model, batch: jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2))
    assert nodes["EquinoxNet/hidden/dot_general"].inputs == ("EquinoxNet/hidden/weight", "batch/0")
    assert nodes["EquinoxNet/out/dot_general"].inputs == ("EquinoxNet/out/weight", "EquinoxNet/relu/max")


def dense(layer, x):
    return x @ layer["w"] + layer["b"]


def network(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(dense(layer, x))
    return dense(layers[-1], x)


def layers_of(*sizes):
    return [{"w": jnp.ones((m, n)), "b": jnp.zeros((1, n))} for m, n in itertools.pairwise(sizes)]


def test_operations_of_a_pytree_stand_in_the_functions_that_made_them():
    nodes = of_step(layers_of(8, 6, 6, 1), lambda p, batch: squares(lambda x: network(p, x), batch))
    assert nodes["squares/network/dense_1/dot_general"].inputs == (
        "squares/network/relu/max",
        "squares/network/dense_1/w",
    )
    assert nodes["squares/network/dense_2/b"].about["path"] == "2/b"


def test_without_functions_they_stand_beside_their_parameters():
    params = {"hidden": {"w": jnp.ones((8, 6))}, "out": {"w": jnp.ones((6, 1))}}
    nodes = of_step(params, lambda p, b: jnp.mean((jnp.tanh(b[0] @ p["hidden"]["w"]) @ p["out"]["w"] - b[1]) ** 2))
    assert nodes["hidden/dot_general"].inputs == ("batch/0", "hidden/w")
    assert nodes["out/dot_general"].inputs == ("tanh", "out/w")


def test_loops_and_branches_are_drawn_from_within():
    def fn(w, x):
        def body(carry, _):
            return jnp.tanh(carry @ w), carry.sum()

        x, sums = jax.lax.scan(body, x, None, length=3)
        x = jax.lax.cond(sums[0] > 0, lambda x: x * 2.0, lambda x: -x, x)
        return jax.lax.while_loop(lambda x: x.sum() < 9.0, lambda x: x + 1.0, x)

    closed = jax.make_jaxpr(fn)(jnp.ones((3, 3)), jnp.ones((2, 3)))
    nodes = by_name(draw(closed, ["params/w", "x"], {"y": 0}))
    assert nodes["scan/dot_general"].inputs == ("x", "scan/w")
    branches = nodes["cond/choose"].inputs[1:]
    assert {name.split("/")[1] for name in branches} == {"branch_0", "branch_1"}
    assert nodes["while/add"].inputs == ("cond/choose",)
    assert nodes["y"].inputs == ("while/add",)


def test_several_results_are_told_apart():
    closed = jax.make_jaxpr(lambda x: sum(jnp.linalg.eigh(x)[1][0]))(jnp.eye(3))
    nodes = by_name(draw(closed, input_names(closed), {"y": 0}))
    (eigh,) = (node for node in nodes.values() if node.op == "eigh")
    assert len(eigh.results) == 2
    users = [name for node in nodes.values() for name in node.inputs if name.split(":")[0] == eigh.name]
    wanted = [i for i, (shape, _) in enumerate(eigh.results) if shape == (3, 3)]
    assert users == [eigh.name + (f":{i}" if i else "") for i in wanted]


def test_a_function_of_ones_own_has_the_names_of_its_arguments():
    closed = jax.make_jaxpr(lambda params, x: x @ params["dense"]["w"])({"dense": {"w": jnp.ones((3, 2))}}, jnp.ones(3))
    nodes = by_name(draw(closed, input_names(closed), {"y": 0}))
    assert nodes["dense/dot_general"].inputs == ("x", "dense/w")


def test_without_tracebacks_it_is_drawn_all_the_same():
    closed = jax.make_jaxpr(lambda w, x: jnp.tanh(x @ w))(jnp.ones((3, 2)), jnp.ones(3))
    bare = [e.replace(source_info=e.source_info.replace(traceback=None)) for e in closed.jaxpr.eqns]
    closed = closed.replace(jaxpr=closed.jaxpr.replace(eqns=bare))
    nodes = by_name(draw(closed, ["params/w", "x"], {"y": 0}))
    assert nodes["y"].inputs == ("tanh",)


def evaluated(nodes, inputs):
    """Runs a graph of sums and products: what is drawn is what is computed."""
    known = dict(inputs)
    run = {"add": np.add, "mul": np.multiply, "sub": np.subtract, "neg": np.negative}
    for node in nodes:
        if node.op == "Output":
            return known[node.inputs[0]]
        if node.op not in ("Input", "Parameter"):
            given = iter(known[name] for name in node.inputs)
            operands = node.about.get("operands", ", ".join("_" * len(node.inputs))).split(", ")
            known[node.name] = run[node.op](*(next(given) if o == "_" else np.float32(o) for o in operands))
    raise AssertionError("it has no output")


@given(st.data())
def test_edges_and_literals_say_what_is_computed(data):
    def fn(a, b, c):
        values = [a, b, c]
        for _ in range(data.draw(st.integers(1, 8), "operations")):
            x, y = (values[data.draw(st.integers(0, len(values) - 1), "operand")] for _ in range(2))
            op = data.draw(st.sampled_from(["+", "*", "-", "neg", "2 -", "jit"]), "operation")
            made = {"+": x + y, "*": x * y, "-": x - y, "neg": -x, "2 -": 2.0 - x}.get(op)
            values.append(jax.jit(lambda p, q: p * q + p)(x, y) if made is None else made)
        return values[-1]

    given_values = {"params/m/a": np.float32(0.5), "b": np.float32(-1.25), "c": np.float32(3.0)}
    closed = jax.make_jaxpr(fn)(*given_values.values())
    nodes = draw(closed, list(given_values), {"y": 0})
    by_name(nodes)
    named = {}
    for node in nodes:
        if node.op in ("Input", "Parameter"):
            named[node.name] = given_values[f"params/{node.about['path']}" if node.op == "Parameter" else node.name]
    if nodes[-1].inputs:
        (expected,) = core.jaxpr_as_fun(closed)(*given_values.values())
        assert evaluated(nodes, named) == pytest.approx(float(expected), rel=1e-5)
