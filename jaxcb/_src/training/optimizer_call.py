"""How an optimizer is begun and called, with the extra arguments that it asks for: its signature does not tell them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcb._src.utils.pytree import nodes_of

_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"missing .*required keyword-only arguments?: (.*)")
_ASKED = re.compile(r"(\w+) must be provided")


def update(
    tx: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    loss: Any,
    functions: Mapping[str, Callable[..., Any]],
) -> tuple[Any, Any]:
    """Calls the optimizer with what it takes of the extra arguments.

    A signature tells little of that, because wrappers such as `optax.chain` hide those of what they wrap, and some
    optimizers refuse what they do not use. So it is called, while the step is traced, until it asks for nothing else.

    Args:
        tx: the optimizer.
        grads: the gradients.
        opt_state: its state.
        params: the parameters.
        loss: the loss, scalar.
        functions: name -> function of the parameters that it may ask for.

    Returns:
        The updates and the new state.

    Raises:
        TypeError: for an optimizer that needs an argument that the step does not have.
    """
    tx, extra = optax.with_extra_args_support(tx), {"value": loss, "grad": grads}
    extra |= {name: fn for name, fn in functions.items() if name == "value_fn"}
    while True:
        try:
            return tx.update(grads, opt_state, params, **extra)
        except (TypeError, ValueError) as error:
            refused, asked, missing = (pattern.search(str(error)) for pattern in (_UNEXPECTED, _ASKED, _MISSING))
            if refused is not None and refused[1] in extra:
                del extra[refused[1]]
            elif asked is not None and asked[1] in functions and asked[1] not in extra:
                extra[asked[1]] = functions[asked[1]]
            elif missing is not None:
                raise TypeError(
                    f"the optimizer needs the arguments {missing[1]}, and this step has {', '.join(extra)}. A loss "
                    "function, as in fit and jc.Step(loss_fn), gives all that the optimizers of optax ask for; "
                    "Step.from_gradients has only value and grad."
                ) from error
            else:
                raise


def initial_state(tx: optax.GradientTransformation, params: Any, *, compiled: bool = False) -> Any:
    """Returns the optimizer's state before the first update, in the form that it keeps.

    The first update of `optax.monitor` adds its measurements to its state, whose form a compiled loop must know from
    the start: here they are zeros. No update depends on them.

    Args:
        tx: the optimizer.
        params: the parameters.
        compiled: whether `tx.init` is compiled. JAX keeps the program as long as there is that function.
    """
    state = (jax.jit(tx.init) if compiled else tx.init)(params)
    if not any(not node.measurements for node in nodes_of(state, _is_monitor)):
        return state
    flat = {"value_fn": _zero, "obj_fn": _zero, "grad_fn": lambda params, number: params}
    _, later = jax.eval_shape(lambda p: update(tx, p, state, p, jnp.zeros(()), flat), params)

    def complete(now: Any, after: Any) -> Any:
        if not _is_monitor(now):
            return now
        return now._replace(measurements=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), after.measurements))

    return jax.tree.map(complete, state, later, is_leaf=_is_monitor)


def _zero(params: Any) -> jax.Array:
    return sum((jnp.sum(p) * 0 for p in jax.tree.leaves(params)), jnp.zeros(()))


def _is_monitor(node: Any) -> bool:
    return isinstance(node, getattr(optax, "MonitorState", ()))  # optax 0.2.6 has none
