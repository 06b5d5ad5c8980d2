"""`TracedStep`: a training or evaluation step as it was traced, and what its inputs and results are."""

from typing import Any, NamedTuple

import jax

from jaxcb._paths import leaf_name


class TracedStep(NamedTuple):
    """A step as it was traced.

    Attributes:
        jaxpr: the closed jaxpr of a function of train state and batch.
        state: shapes of the train state.
        batch: shapes of a batch.
        metrics: name -> which of the results it is.
    """

    jaxpr: Any
    state: Any
    batch: Any
    metrics: dict[str, int]

    @classmethod
    def of(cls, traced: Any, state: Any, batch: Any, metrics: Any) -> "TracedStep":
        """Takes what `jax.jit(step).trace(state, batch)` returns.

        Args:
            traced: that.
            state: the train state, or its shapes; so the batch.
            batch: a batch.
            metrics: a function that finds the metrics among what the step returns.
        """
        results = jax.tree.structure(traced.out_info)
        numbered = metrics(jax.tree.unflatten(results, range(results.num_leaves)))
        named = {leaf_name(path): number for path, number in jax.tree_util.tree_leaves_with_path(numbered)}
        return cls(traced.jaxpr, state, batch, named)
