"""`TracedStep`: a traced training or evaluation step with its inputs and results, and the count of its FLOPs."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxcb._src.utils.xla import jaxpr_in

if TYPE_CHECKING:
    from jax.extend import core

import jax

from jaxcb._src.utils.names import leaf_name

BATCH = object()  # marks an input that is part of the batch
_Tally = dict[Any, float]  # operands (a set of parameters, or a key below) -> operations
_BETWEEN, _STEP = "between", "step"


class Flops(NamedTuple):
    """Floating-point operations of matrix products and convolutions; a multiplication and an addition are two.

    Attributes:
        by_parameter: name -> operations of the forward pass that use it. If several parameters form one operand (a
            sum, a product), its operations are divided among them by size.
        between: operations of the forward pass between activations, such as attention scores.
        step: operations of everything that was traced, with gradients and optimizer.
    """

    by_parameter: dict[str, float]
    between: float
    step: float

    @property
    def forward(self) -> float:
        """Operations of one forward pass."""
        return math.fsum(self.by_parameter.values()) + self.between


class _Origin(NamedTuple):
    """The inputs that a value was computed from."""

    parameters: frozenset[int] = frozenset()  # indices of inputs; empty if it also depends on the batch
    batch: bool = False
    backward: bool = False  # whether it depends on a gradient


def count_flops(closed: "core.ClosedJaxpr", inputs: Sequence[Any]) -> Flops:
    """Counts the operations of a traced step.

    A product is attributed to a parameter if one operand was computed from that parameter only: cast, reshaped, sliced,
    scaled, also within functions, loops and checkpoints. Operations after a derivative (the transposed half of
    `jax.grad`, or anything computed from its results) are not part of the forward pass. A loop counts as often as it
    runs; one whose end depends on data counts once; of a branch the larger side counts. Elementwise operations are not
    counted.

    Args:
        closed: a traced function.
        inputs: for each of its inputs the parameter's name, `BATCH`, or None for anything else.

    Returns:
        The counts; a parameter that no product uses has 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> closed = jax.make_jaxpr(lambda w, x: jnp.tanh(x @ w))(jnp.ones((3, 4)), jnp.ones((5, 3)))
        >>> count_flops(closed, ["w", BATCH]).by_parameter
        {'w': 120.0}
    """
    origins = []
    for i, name in enumerate(inputs):
        mine = frozenset([i]) if name is not None and name is not BATCH else frozenset()
        origins.append(_Origin(mine, batch=name is BATCH))
    _, tally = _walk(closed.jaxpr, origins, False)
    by_parameter = {name: 0.0 for name in inputs if isinstance(name, str)}
    sizes = [var.aval.size for var in closed.jaxpr.invars]
    for owners, flops in tally.items():
        if isinstance(owners, frozenset):
            whole = sum(sizes[i] for i in owners) or 1
            for i in owners:
                by_parameter[inputs[i]] += flops * sizes[i] / whole
    return Flops(by_parameter, tally.get(_BETWEEN, 0.0), tally.get(_STEP, 0.0))


def _joined(origins: Iterable[_Origin]) -> _Origin:
    origins = list(origins)
    batch = any(o.batch for o in origins)
    parameters = frozenset[int]().union(*(o.parameters for o in origins)) if not batch else frozenset[int]()
    return _Origin(parameters, batch, any(o.backward for o in origins))


def _walk(jaxpr: "core.Jaxpr", inputs: Sequence[_Origin], backward: bool) -> tuple[list[_Origin], _Tally]:
    """Returns the origins of the outputs, and the operations by their operands."""
    known = dict(zip(map(id, jaxpr.invars), inputs, strict=True))
    tally: _Tally = defaultdict(float)
    for equation in jaxpr.eqns:
        # JAX marks reverse-mode equations in the name stack; an inner program has a name stack of its own
        behind = backward or "transpose(" in str(equation.source_info.name_stack)
        given = [known.get(id(v), _Origin()) for v in equation.invars]
        results, counted = _equation(equation, given, behind)
        for owners, flops in counted.items():
            tally[owners] += flops
        for var, origin in zip(equation.outvars, results, strict=True):
            known[id(var)] = origin._replace(backward=origin.backward or behind)
    return [known.get(id(v), _Origin()) for v in jaxpr.outvars], tally


def _equation(equation: Any, given: list[_Origin], backward: bool) -> tuple[list[_Origin], _Tally]:
    params = equation.params
    match equation.primitive.name:
        case "dot_general" | "conv_general_dilated" as name:
            flops = (_dot if name == "dot_general" else _convolution)(equation)
            tally: _Tally = {_STEP: flops}
            if not (backward or any(o.backward for o in given)):
                owners = frozenset[int]().union(*(o.parameters for o in given))
                tally[owners or _BETWEEN] = flops
            return [_joined(given)], tally
        case "scan":
            body = params["jaxpr"].jaxpr
            carried = _carried(equation, body)
            return _loop(body, given, carried, backward, times=params["length"])
        case "while":
            split = params["cond_nconsts"]
            carried = slice(params["body_nconsts"], None)
            return _loop(params["body_jaxpr"].jaxpr, given[split:], carried, backward)
        case "cond":
            sides = [_walk(side.jaxpr, given[1:], backward) for side in params["branches"]]
            origins = [
                _joined([given[0]._replace(parameters=frozenset()), *outs])
                for outs in zip(*(outs for outs, _ in sides), strict=True)
            ]
            return origins, max((tally for _, tally in sides), key=lambda t: t.get(_STEP, 0.0))
    inner = next((inner_jaxpr for inner_jaxpr in map(jaxpr_in, params.values()) if inner_jaxpr is not None), None)
    if inner is not None and len(inner.invars) == len(given) and len(inner.outvars) == len(equation.outvars):
        return _walk(inner, given, backward)
    return [_joined(given)] * len(equation.outvars), {}


def _carried(scan: Any, body: Any) -> slice:
    """Returns the position of a scan's carry among its inputs: after the constants, before the scanned arrays.

    The names of the parameters that say so differ between versions of JAX; but scanned arrays have one more axis
    outside.
    """
    sliced = sum(o.aval.ndim > i.aval.ndim for o, i in zip(scan.invars, body.invars, strict=True))
    carry = sum(o.aval.ndim == i.aval.ndim for o, i in zip(scan.outvars, body.outvars, strict=True))
    end = len(scan.invars) - sliced
    return slice(end - carry, end)


def _loop(
    body: "core.Jaxpr", given: list[_Origin], carried: slice, backward: bool, times: int = 1
) -> tuple[list[_Origin], _Tally]:
    """Walks a loop's body until the origins of its carry no longer change."""
    while True:
        outs, tally = _walk(body, given, backward)
        before = given[carried]
        after = [_joined(pair) for pair in zip(before, outs, strict=False)]
        if after == before:
            return outs, {owners: flops * times for owners, flops in tally.items()}
        given = [*given[: carried.start], *after, *given[carried.start + len(after) :]]


def repeated_flops(jaxpr: "core.Jaxpr", times: int = 1) -> float:
    """Returns the operations of matrix products and convolutions that loops repeat after their first trip.

    A loop whose end depends on data counts once, so it adds nothing; of a branch the larger side counts. Kernels of
    Pallas are left out, since XLA does not count them either.

    Args:
        jaxpr: of a traced function.
        times: how often it runs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> w, x = jnp.ones((7, 4, 4)), jnp.ones((3, 4))
        >>> closed = jax.make_jaxpr(lambda w, x: jax.lax.scan(lambda c, layer: (c @ layer, None), x, w)[0])(w, x)
        >>> repeated_flops(closed.jaxpr) == (7 - 1) * 2 * 3 * 4 * 4
        True
    """
    total = 0.0
    for equation in jaxpr.eqns:
        params = equation.params
        match equation.primitive.name:
            case "dot_general":
                total += (times - 1) * _dot(equation)
            case "conv_general_dilated":
                total += (times - 1) * _convolution(equation)
            case "scan":
                total += repeated_flops(params["jaxpr"].jaxpr, times * params["length"])
            case "while":
                total += repeated_flops(params["body_jaxpr"].jaxpr, times)
            case "cond":
                total += max(repeated_flops(side.jaxpr, times) for side in params["branches"])
            case "pallas_call":
                pass
            case _:
                inner = next(filter(None, map(jaxpr_in, params.values())), None)
                total += 0.0 if inner is None else repeated_flops(inner, times)
    return total


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _convolution(equation: Any) -> float:
    """Counts the taps on the image, as XLA does: not those on its padding or between dilated pixels."""
    params, (image, kernel), out = equation.params, equation.invars, equation.outvars[0].aval.shape
    numbers = params["dimension_numbers"]
    taps = 1
    for i, stride in enumerate(params["window_strides"]):
        holes, spread, low = params["lhs_dilation"][i], params["rhs_dilation"][i], params["padding"][i][0]
        size = (image.aval.shape[numbers.lhs_spec[2 + i]] - 1) * holes + 1
        places = range(-low, -low + out[numbers.out_spec[2 + i]] * stride, stride)
        reach = [tap * spread for tap in range(kernel.aval.shape[numbers.rhs_spec[2 + i]])]
        taps *= sum(0 <= p + r < size and (p + r) % holes == 0 for p in places for r in reach)
    features = kernel.aval.shape[numbers.rhs_spec[1]]
    return 2.0 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * features * taps


class TracedStep(NamedTuple):
    """A traced step.

    Attributes:
        jaxpr: the closed jaxpr of a function of train state and batch.
        state: shapes of the train state.
        batch: shapes of a batch.
        metrics: name -> index of the result.
    """

    jaxpr: Any
    state: Any
    batch: Any
    metrics: dict[str, int]

    @classmethod
    def of(cls, traced: Any, state: Any, batch: Any, metrics: Any) -> "TracedStep":
        """Makes it from the result of `jax.jit(step).trace(state, batch)`.

        Args:
            traced: the result of `trace`.
            state: the train state, or its shapes.
            batch: a batch, or its shapes.
            metrics: a function that returns the metrics, given the step's result.
        """
        results = jax.tree.structure(traced.out_info)
        numbered = metrics(jax.tree.unflatten(results, range(results.num_leaves)))
        named = {leaf_name(path): number for path, number in jax.tree_util.tree_leaves_with_path(numbered)}
        return cls(traced.jaxpr, state, batch, named)
