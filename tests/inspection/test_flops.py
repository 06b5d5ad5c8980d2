"""What a step computes, by the parameters that it uses; XLA's own count is the measure."""

import jax
import jax.numpy as jnp
import pytest

from jaxcb._src.inspection.traced_step import BATCH, count_flops, repeated_flops


def counted(fn, names, *args):
    """The counts of a traced function, and what XLA counts in it."""
    traced = jax.jit(fn).trace(*args)
    return count_flops(traced.jaxpr, names), traced.lower().cost_analysis()["flops"]


ONES = jnp.ones((4, 4))


@pytest.mark.parametrize(
    "through",
    [
        lambda w: w.T.reshape(2, 8).reshape(4, 4),
        lambda w: w.astype(jnp.bfloat16).astype(jnp.float32),
        lambda w: jax.lax.broadcast(w, (3,))[1],
        lambda w: jax.jit(lambda a: a[:, ::-1])(w),
        lambda w: jax.checkpoint(lambda a: 2.0 * a)(w),
        lambda w: jax.lax.scan(lambda c, _: (c * 2.0, None), w, length=3)[0],
        lambda w: jax.lax.fori_loop(0, 3, lambda _, c: c + 1.0, w),
        lambda w: jax.lax.while_loop(lambda c: c[0, 0] < 3.0, lambda c: c + 1.0, w),
        lambda w: jax.lax.cond(w[0, 0] > 0.0, lambda a: a, lambda a: -a, w),
        lambda w: jax.nn.relu(w),
    ],
)
def test_a_parameter_is_known_through_what_is_done_to_it(through):
    flops, _ = counted(lambda w, v, x: (x @ through(w)) @ v, ["w", "v", BATCH], ONES, ONES, ONES[:3])
    assert flops.by_parameter == {"w": 2.0 * 3 * 4 * 4, "v": 2.0 * 3 * 4 * 4}
    assert flops.between == 0.0


def test_scores_of_an_attention_belong_to_no_parameter():
    def attend(w, x):
        q = x @ w
        return jax.nn.softmax(q @ x.T) @ x

    flops, _ = counted(attend, ["w", BATCH], ONES, jnp.ones((3, 4)))
    assert flops.by_parameter == {"w": 2.0 * 3 * 4 * 4}
    assert flops.between == 2 * (2.0 * 3 * 3 * 4)


def test_an_embedding_counts_where_it_multiplies():
    tokens = jnp.zeros((5,), jnp.int32)
    flops, _ = counted(lambda e, w, i: (e[i] @ w) @ e.T, ["e", "w", BATCH], jnp.ones((7, 4)), ONES, tokens)
    assert flops.by_parameter == {"e": 2.0 * 5 * 4 * 7, "w": 2.0 * 5 * 4 * 4}


def test_what_parameters_make_together_is_shared_by_size():
    a, b = jnp.ones((4, 2)), jnp.ones((2, 6))
    flops, _ = counted(lambda a, b, x: x @ (a @ b), ["a", "b", BATCH], a, b, jnp.ones((3, 4)))
    total = 2.0 * 4 * 2 * 6 + 2.0 * 3 * 4 * 6
    assert flops.by_parameter == pytest.approx({"a": total * 8 / 20, "b": total * 12 / 20})


def test_loops_count_as_often_as_they_run_and_branches_by_the_larger():
    def deep(w, x):
        x, _ = jax.lax.scan(jax.checkpoint(lambda c, layer: (jnp.tanh(c @ layer), None)), x, w)
        return jax.lax.cond(x.sum() > 0, lambda c: c @ c.T @ c, lambda c: c, x)

    flops, _ = counted(deep, ["w", BATCH], jnp.ones((5, 4, 4)), ONES)
    assert flops.by_parameter == {"w": 5 * 2.0 * 4**3}
    assert flops.between == 2 * 2.0 * 4**3


def test_derivatives_are_no_part_of_the_forward_pass():
    def loss(w, x):
        for layer in w:
            x = jax.nn.relu(x @ layer)
        return jnp.mean(x**2)

    def step(w, x):
        grads = jax.grad(loss)(w, x)
        return [p - g @ g.T @ g for p, g in zip(w, grads, strict=True)]  # an optimizer that multiplies matrices

    forward, _ = counted(loss, ["a", "b", BATCH], [ONES, ONES], ONES)
    whole, _ = counted(step, ["a", "b", BATCH], [ONES, ONES], ONES)
    product = 2.0 * 4**3
    assert whole.by_parameter == forward.by_parameter == {"a": product, "b": product}
    assert whole.between == 0.0
    assert whole.step == (2 + 3 + 4) * product  # forward, backward without the batch's own, optimizer


@pytest.mark.parametrize(
    "how",
    [
        {"padding": "SAME"},
        {"padding": "VALID", "window_strides": (2, 1)},
        {"padding": ((1, 2), (3, 0)), "lhs_dilation": (2, 3), "rhs_dilation": (1, 2)},
    ],
)
def test_convolutions_agree_with_xla(how):
    def convolve(kernel, image):
        numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": 2, "window_strides": (1, 1)}
        return jax.lax.conv_general_dilated(image, kernel, **numbers | how)

    flops, oracle = counted(convolve, ["k", BATCH], jnp.ones((3, 3, 2, 6)), jnp.ones((2, 9, 8, 4)))
    assert flops.by_parameter == {"k": oracle}


@pytest.mark.parametrize("axes", ["bij,bjk->bik", "ij,kj->ik", "bhqd,bhkd->bhqk", "ijk,kj->i"])
def test_products_agree_with_xla(axes):
    sizes = dict(zip("bhijkqd", (2, 3, 4, 5, 6, 7, 8), strict=True))
    shapes = [jnp.ones([sizes[c] for c in part]) for part in axes.split("->")[0].split(",")]
    flops, oracle = counted(lambda w, x: jnp.einsum(axes, x, w), ["w", BATCH], *reversed(shapes))
    assert flops.forward == flops.step == oracle


def layers(scanned, rematerialized=False):
    """The gradient of a network whose layers are a scan, or are written one after another."""

    def layer(x, w):
        return jnp.tanh(x @ w), None

    layer = jax.checkpoint(layer) if rematerialized else layer

    def loss(w, x):
        if scanned:
            return jax.lax.scan(layer, x, w)[0].sum()
        for one in w:
            x, _ = layer(x, one)
        return x.sum()

    weights = jnp.ones((5, 64, 64)) if scanned else [jnp.ones((64, 64))] * 5
    return jax.jit(jax.grad(loss, argnums=(0, 1))).trace(weights, jnp.ones((3, 64)))


@pytest.mark.parametrize("rematerialized", [False, True])
def test_a_scan_over_layers_repeats_what_xla_counts_once(rematerialized):
    flat, scanned = layers(False, rematerialized), layers(True, rematerialized)
    assert repeated_flops(flat.jaxpr.jaxpr) == 0
    product = 2.0 * 3 * 64 * 64
    products = 4 if rematerialized else 3  # forward, backward for both operands, and forward again
    assert repeated_flops(scanned.jaxpr.jaxpr) == 4 * products * product
    # XLA counts a trip of each loop: if this changes, nothing must be added any more
    counted_flat, counted_scan = (traced.lower().cost_analysis()["flops"] for traced in (flat, scanned))
    together = counted_scan + repeated_flops(scanned.jaxpr.jaxpr)
    assert counted_scan < 0.4 * counted_flat
    assert together == pytest.approx(counted_flat, rel=0.1)  # but for elementwise operations


def test_nested_loops_multiply_and_loops_of_unknown_length_count_once():
    def nested(w, x, n):
        inner = lambda c, _: (jax.lax.fori_loop(0, 3, lambda _, c: c @ w, c), None)  # noqa: E731
        x, _ = jax.lax.scan(inner, x, length=5)
        x = jax.lax.while_loop(lambda c: c[0, 0] < n, lambda c: c @ w, x)
        return jax.lax.cond(n > 0, lambda: jax.lax.scan(lambda c, _: (c @ w, None), x, length=2)[0], lambda: x)

    closed = jax.make_jaxpr(nested)(ONES, ONES, 1.0)
    assert repeated_flops(closed.jaxpr) == ((15 - 1) + 0 + (2 - 1)) * 2.0 * 4**3
