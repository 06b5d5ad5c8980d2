"""`AnyState`: how a training state of any form serves as a `TrainState`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.flat_jit import eval_shape
from jaxcb._src.utils.pytree import cast_like, to_strong_types


def _holds_weights(node: Any) -> bool:
    """Returns whether a node is a `TrainState`, or has the fields of one, such as that of Flax."""
    if isinstance(node, TrainState):
        return True
    return (
        dataclasses.is_dataclass(node)
        and all(hasattr(node, name) for name in ("params", "opt_state"))
        and callable(getattr(node, "replace", None))
    )


class AnyState:
    """Converts between a training state of any form and a `TrainState`, which is what callbacks act on.

    A `TrainState` stays as it is. In any other pytree, callbacks act on the one `TrainState` within it, or else on the
    fields `params` and `opt_state` of the objects that have both, such as `flax.training.train_state.TrainState`. The
    rest of the state (environments, samplers, keys) is kept in `rngs`, which no callback copies.

    Args:
        state: the state; of it, only the structure is kept.

    Attributes:
        holders: how many objects hold weights. Without one, callbacks can stop the run, but copy no weights and change
            no learning rate.
    """

    def __init__(self, state: Any) -> None:
        nodes, self._tree = jax.tree.flatten(state, is_leaf=_holds_weights)
        self._at = [i for i, node in enumerate(nodes) if _holds_weights(node)]
        self.holders = len(self._at)
        self.is_train_state = isinstance(state, TrainState)
        self._contains_one = self.holders == 1 and isinstance(nodes[self._at[0]], TrainState)

    def start(self, state: Any) -> TrainState:
        """Returns the train state of a state at the beginning of a run. Traced."""
        if self.is_train_state:
            return state
        parts = self._split(to_strong_types(state))
        if self._contains_one:
            return parts["own"].replace(rngs=parts["rngs"])
        return TrainState.create(**parts)

    def merge(self, train: TrainState) -> Any:
        """Returns the state in the form of the user, with what callbacks have changed. Traced."""
        if self.is_train_state:
            return train
        if self._contains_one:
            own, nodes = train.rngs
            nodes = [*nodes[: self._at[0]], train.replace(rngs=own), *nodes[self._at[0] :]]
            return jax.tree.unflatten(self._tree, nodes)
        nodes = list(train.rngs)
        for i, params, opt_state in zip(self._at, train.params, train.opt_state or (), strict=True):
            nodes[i] = nodes[i].replace(params=params, opt_state=opt_state)
        return jax.tree.unflatten(self._tree, nodes)

    def adapted(self, step: Callable[[Any], tuple[Any, Any]], state: Any) -> Callable[..., Any]:
        """Returns a step of the user's state as a step of the train state: `(train_state, batch) -> (..., metrics)`.

        Args:
            step: `(state) -> (state, metrics)`.
            state: the state, or its shapes.
        """
        shapes = eval_shape(to_strong_types, state)

        def train_step(train: TrainState, batch: Any = None) -> tuple[TrainState, Any]:
            del batch
            result = step(self.merge(train))
            if not (isinstance(result, tuple | list) and len(result) == 2):
                raise TypeError(
                    f"the step returned {type(result).__name__}, expected (state, metrics): `return state, metrics`."
                )
            new, values = result
            if self.is_train_state:
                return new, values
            like = self.merge(train) if self._contains_one else shapes
            parts = self._split(cast_like(new, like, "the step: the state", error=ValueError))
            if self._contains_one:
                return parts["own"].replace(rngs=parts["rngs"]), values
            return train.replace(**parts), values

        return train_step

    def _split(self, state: Any) -> dict[str, Any]:
        """Returns fields of a train state; a `TrainState` within the state as `own`."""
        nodes = list(jax.tree.flatten(state, is_leaf=_holds_weights)[0])
        if self._contains_one:
            own = nodes.pop(self._at[0])
            return {"own": own, "rngs": (own.rngs, nodes)}
        weights = [(nodes[i].params, nodes[i].opt_state) for i in self._at]
        for i in self._at:
            nodes[i] = nodes[i].replace(params=None, opt_state=None)
        params, opt_state = ([pair[k] for pair in weights] for k in (0, 1))
        return {"params": params, "opt_state": opt_state or None, "rngs": nodes}
