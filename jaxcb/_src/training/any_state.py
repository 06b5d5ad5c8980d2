"""`AnyState`: how a training state of any form serves as a `TrainState`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxcb._src.models.adapter import avals
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.errors import shown
from jaxcb._src.utils.program_key import tree_key
from jaxcb._src.utils.pytree import cast_like, to_strong_type

NO_WEIGHTS = (  # after the name of a callback
    "keeps copies of weights, but nothing says which part of this state the weights are. Put them into a "
    "jc.TrainState, as the state or as a part of it."
)


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
        parts = self._split(_as_arrays(state))
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

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return self._tree, tuple(self._at), self.is_train_state, self._contains_one

    def adapted(self, step: Callable[[Any], tuple[Any, Any]], state: Any) -> "AdaptedStep":
        """Returns a step of the user's state as a step of the train state.

        Args:
            step: `(state) -> (state, metrics)`.
            state: the state, as `merge` returns it.
        """
        return AdaptedStep(self, step, None if self.is_train_state else avals(state))

    def adapted_eval(self, eval_step: Callable[..., Any], *, with_batch: bool) -> "AdaptedEvalStep":
        """Returns an evaluation of the user's state as one of the train state.

        Args:
            eval_step: `(state) -> metrics`, or `(state, batch) -> metrics`.
            with_batch: whether it takes a batch.
        """
        return AdaptedEvalStep(self, eval_step, with_batch)

    def replaced(self, train: TrainState, state: Any, shapes: Any) -> TrainState:
        """Returns the train state with the user's new state.

        Args:
            train: the train state before the step.
            state: the user's state after it.
            shapes: of the user's state, which a step keeps.

        Raises:
            ValueError: for a state of another form.
        """
        like = self.merge(train) if self._contains_one else shapes
        parts = self._split(cast_like(state, like, "the step: the state", error=ValueError))
        if self._contains_one:
            return parts["own"].replace(rngs=parts["rngs"])
        return train.replace(**parts)

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


def _as_arrays(state: Any) -> Any:
    """Returns the state with arrays as its leaves.

    Raises:
        TypeError: for a leaf that is none.
    """

    def leaf(path: Any, x: Any) -> Any:
        try:
            return to_strong_type(x)
        except TypeError:
            raise TypeError(
                f"the state{jax.tree_util.keystr(path)} is {shown(x)}, expected an array or a number. Close over what "
                "is not an array in the step."
            ) from None

    return jax.tree_util.tree_map_with_path(leaf, state)


class AdaptedStep:
    """A step of the user's state, as a step of the train state: `(train_state, batch) -> (train_state, metrics)`.

    Args:
        form: the form of the user's state.
        step: `(state) -> (state, metrics)`.
        shapes: of the user's state.
    """

    def __init__(self, form: AnyState, step: Callable[[Any], tuple[Any, Any]], shapes: Any) -> None:
        self._form, self._step, self._shapes = form, step, shapes
        self.__name__ = "step"  # in errors

    def __call__(self, train: TrainState, batch: Any = None) -> tuple[TrainState, Any]:
        del batch
        result = self._step(self._form.merge(train))
        if not (isinstance(result, tuple | list) and len(result) == 2):
            raise TypeError(
                f"the step returned {type(result).__name__}, expected (state, metrics): `return state, metrics`."
            )
        new, values = result
        return (new if self._form.is_train_state else self._form.replaced(train, new, self._shapes)), values

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return self._form, self._step, tree_key(self._shapes)


class AdaptedEvalStep:
    """An evaluation of the user's state, as one of the train state: `(train_state, batch) -> metrics`.

    Args:
        form: the form of the user's state.
        eval_step: `(state) -> metrics`, or `(state, batch) -> metrics`.
        with_batch: whether it takes a batch.
    """

    def __init__(self, form: AnyState, eval_step: Callable[..., Any], with_batch: bool) -> None:
        self._form, self._eval_step, self._with_batch = form, eval_step, with_batch

    def __call__(self, train: TrainState, batch: Any = None) -> Any:
        state = self._form.merge(train)
        return self._eval_step(state, batch) if self._with_batch else self._eval_step(state)

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return self._form, self._eval_step, self._with_batch
