"""`model_summary`: what a model is made of and what it costs, outside any run."""

from collections.abc import Callable
from typing import Any

import jax

from jaxcb._step import EvalStep
from jaxcb._summary import Summary, summarize
from jaxcb._traced_step import TracedStep
from jaxcb._train_state import TrainState
from jaxcb.models import adapt


def model_summary(
    model: Any, loss_fn: Callable[..., Any] | None = None, batch: Any = None, *, depth: int | None = None
) -> Summary:
    """Looks at a model: its arrays, what they hold, and the FLOPs of a forward pass.

    Args:
        model: as for `fit`.
        loss_fn: as for `fit`; traced for the FLOPs, nothing is run.
        batch: a batch of data, or shapes and dtypes (`jax.ShapeDtypeStruct`) in its place.
        depth: one line for all arrays that share so many first parts of their path.

    Returns:
        A `Summary`: `lines`, `parameters`, `trainable`, `bytes`, `flops`. `str` makes the table of it that
        `ModelSummary` prints.

    Raises:
        ValueError: for a loss function without a batch, or a batch without one.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> loss_fn = lambda params, x: jnp.mean((x @ params["w"] + params["b"]) ** 2)
        >>> params = {"w": jnp.ones((3, 4)), "b": jnp.ones((1, 4))}
        >>> summary = jc.model_summary(params, loss_fn, jnp.ones((5, 3)))
        >>> summary.parameters, summary.bytes, summary.flops
        (16, 64, 120.0)

    Source: `keras.Model.summary`; `flax.nnx.tabulate`.
    """
    if (loss_fn is None) is not (batch is None):
        given, missing = ("a batch", "loss_fn") if loss_fn is None else ("a loss_fn", "batch")
        raise ValueError(f"model_summary got {given} and no {missing}; it counts FLOPs with both, or leaves them out.")
    adapter = adapt(model)
    params, model_state, rngs = adapter.split()
    state = TrainState.create(params=params, model_state=model_state, rngs=rngs, adapter=adapter)
    if loss_fn is None:
        return summarize(state).grouped(depth)
    traced = jax.jit(EvalStep(loss_fn)).trace(state, batch)
    return summarize(state, TracedStep.of(traced, state, batch, lambda metrics: metrics)).grouped(depth)
