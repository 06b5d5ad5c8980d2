"""`Step`: a training step in two parts, computing an update and applying it, with hooks and probes in between."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxcb._src.core.actions.control import Restore, ScaleUpdates, SkipUpdate, Swap
from jaxcb._src.core.actions.utils import as_actions
from jaxcb._src.models.trainable import is_held
from jaxcb._src.training.learning_rate import with_callback_lr_from
from jaxcb._src.training.loss import LossFunction, flat_metrics
from jaxcb._src.training.optimizer_call import update
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.names import check_pattern, leaf_name, matches
from jaxcb._src.utils.program_key import Reference
from jaxcb._src.utils.pytree import Struct, cast_like, select
from jaxcb._src.utils.xla import stored

_EVALUATION = 0x6576616C  # folded into the key, so that evaluation and training use different keys


class Gradients(Struct):
    """The result of a loss and its differentiation, before the optimizer.

    Attributes:
        grads: the gradients, with the structure of the params.
        values: the metrics of the step, `loss` among them.
        model_state: non-trained arrays after the forward pass.
        rngs: random generators after the forward pass.
        aux: arrays that the loss function returned for probes.
    """

    grads: Any
    values: dict[str, Any]
    model_state: Any
    rngs: Any
    aux: Any = None


class PendingUpdate(Struct):
    """An update that is computed and not yet applied."""

    gradients: Gradients
    updates: Any
    opt_state: Any


class Step:
    """A training step whose gradients and updates are visible before they are applied.

    `fit` makes one. With `Loop` it is a `train_step` that supports `on_before_update` and probes.

    Args:
        loss_fn: `loss_fn(model, batch)` returning `loss`, `(loss, {name: value})` or `Out`. It may take the
            keywords `key` (the step's PRNG key), `train`, `controls`, `state` and `sample_weight`.
        class_weight: label -> weight, multiplied into `sample_weight` during training.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> step = jc.Step(lambda params, batch: jnp.mean((params["w"] - batch) ** 2))
        >>> state = jc.TrainState.create(params={"w": jnp.zeros(())}, tx=optax.sgd(0.5))
        >>> state, values = step(state, jnp.ones(4))
        >>> float(values["loss"]), float(state.params["w"])
        (1.0, 1.0)
    """

    _of_a_member = False

    def __init__(self, loss_fn: Callable[..., Any], *, class_weight: Mapping[int, float] | None = None) -> None:
        self._gradients: Callable[[TrainState, Any], Gradients] = LossGradients(LossFunction(loss_fn, class_weight))

    @classmethod
    def from_gradients(cls, fn: Callable[[TrainState, Any], Any]) -> "Step":
        """Makes a step from gradients that you compute: per-example clipping, several losses, a custom VJP.

        Args:
            fn: `fn(train_state, batch) -> (grads, {name: value})`; `loss` must be among the values. An optional third
                result is the model after its forward pass, from which the new non-trained arrays are taken.

        Returns:
            A `Step`.

        Example:
            >>> import jaxcb as jc, jax, jax.numpy as jnp, optax
            >>> def clipped(state, batch):
            ...     loss, grads = jax.value_and_grad(lambda w: jnp.mean((w - batch) ** 2))(state.params)
            ...     return jnp.clip(grads, -1.0, 1.0), {"loss": loss}
            >>> step = jc.Step.from_gradients(clipped)
            >>> state = jc.TrainState.create(params=jnp.zeros(()), tx=optax.sgd(0.5))
            >>> float(step(state, jnp.ones(4))[0].params)
            0.5
        """
        step = object.__new__(cls)
        step._gradients = CustomGradients(fn)
        return step

    def for_population(self) -> "Step":
        """Returns the step for the members of a population.

        Members that share a batch have their gradients in one product of matrices, whose result XLA turns around.
        """
        step = copy.copy(self)
        step._of_a_member = True
        return step

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return (self._gradients, self._of_a_member) if type(self) is Step else Reference(self)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        proposal = self.compute_update(state, batch)
        return self.update(state, proposal), proposal.gradients.values

    def compute_update(self, state: TrainState, batch: Any) -> PendingUpdate:
        """Computes loss, gradients and updates without applying them."""
        if state.tx is None:
            raise ValueError("this TrainState was made without tx=, so a Step has no optimizer to update it with.")
        gradients = self._gradients(state, batch)
        grads = gradients.grads
        # of `optax.lookahead`, only the fast parameters have a gradient of their own
        grads = grads.fast if isinstance(grads, optax.LookaheadParams) else grads
        grads = stored(grads) if self._of_a_member else grads
        functions = self._gradients.functions(state, batch) if isinstance(self._gradients, LossGradients) else {}
        assert state.tx is not None
        updates, opt_state = update(state.tx, grads, state.opt_state, state.params, gradients.values["loss"], functions)
        return PendingUpdate(gradients, updates, opt_state)

    def activations(self, state: TrainState, batch: Any) -> dict[str, Array]:
        """Runs the training forward pass of a batch, and returns the outputs of the model's modules: path -> array.

        Raises:
            ValueError: if the model does not expose them, or the user's own function computes the gradients.
        """
        loss_fn, adapter = getattr(self._gradients, "loss_fn", None), state.adapter
        if loss_fn is None or adapter is None:
            what = "Step.from_gradients" if loss_fn is None else "a TrainState that was made without a model"
            raise ValueError(f"activations are not available with {what}. Return the arrays as a metric, or use fit.")
        return adapter.activations(state.model(train=True), lambda model: loss_fn(model, batch, state, train=True).loss)

    def update(self, state: TrainState, proposal: PendingUpdate, actions: Any = None) -> TrainState:
        """Applies an update, modified by the `actions` of `on_before_update`."""
        updates, gradients = proposal.updates, proposal.gradients
        for action in as_actions(actions):
            if isinstance(action, ScaleUpdates):
                updates = _scale(updates, action)
        new = state.replace(
            params=optax.apply_updates(state.params, updates),
            # changes of the learning rate in on_before_update take effect from the next update on
            opt_state=with_callback_lr_from(proposal.opt_state, state.opt_state),
            model_state=gradients.model_state,
        )
        for action in as_actions(actions):
            if isinstance(action, ScaleUpdates):
                new = new.replace(model_state=_held(action, state, new.model_state))
            if isinstance(action, SkipUpdate):
                new = select(action.when, state, new)
            elif isinstance(action, Restore | Swap):  # the update was computed for the weights before the restore
                new = select(action.when & state.weights[action.key].filled, state, new)
        return new.replace(step=state.step + 1, rngs=gradients.rngs)


class LossGradients:
    """Computes gradients by differentiating a loss function."""

    def __init__(self, loss_fn: LossFunction) -> None:
        self.loss_fn = loss_fn

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return self.loss_fn

    def __call__(self, state: TrainState, batch: Any) -> Gradients:
        def loss(params: Any) -> tuple[Array, Any]:
            model = state.replace(params=params).model(train=True)
            out = self.loss_fn(model, batch, state, train=True)
            model_state, rngs = state.carried(model)
            if out.state is not None:
                model_state = out.state
            return out.loss, (out.metrics, model_state, rngs, out.aux)

        _check_lookahead(state)
        (_, (values, model_state, rngs, aux)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        model_state = cast_like(model_state, state.model_state, "the model's state after loss_fn: ", error=ValueError)
        return Gradients(grads, values, _of_trained_modules(state, model_state), rngs, aux)

    def functions(self, state: TrainState, batch: Any) -> dict[str, Callable[..., Any]]:
        """Returns the functions of the parameters that optimizers of optax ask for, on the batch and key of the step.

        `value_fn` (line searches) and `obj_fn` (Sophia) are the loss, `grad_fn(params, number)` (SAM) its gradient.
        """

        def loss(params: Any) -> Array:
            out = self.loss_fn(state.replace(params=params).model(train=True), batch, state, train=True)
            return out.loss

        def gradient(params: Any, number: Any = None) -> Any:
            del number  # of the inner step: all use the batch of the step
            return jax.grad(loss)(params)

        return {"value_fn": loss, "obj_fn": loss, "grad_fn": gradient}


def _check_lookahead(state: TrainState) -> None:
    """Refuses `optax.lookahead` for parameters that are not its own pair.

    Raises:
        TypeError: it says how to make the pair.
    """
    nodes = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, optax.LookaheadState))
    asked = any(isinstance(node, optax.LookaheadState) for node in nodes)
    if asked and not isinstance(state.params, optax.LookaheadParams):
        raise TypeError(
            f"optax.lookahead trains a pair of parameters, optax.LookaheadParams, got a {type(state.params).__name__}. "
            "Pass jc.fit(optax.LookaheadParams.init_synced(params), ...) and use model.fast in loss_fn; model.slow are "
            "the weights to keep."
        )


class CustomGradients:
    """Computes gradients with a user's function."""

    def __init__(self, fn: Callable[[TrainState, Any], Any]) -> None:
        if not callable(fn):
            raise TypeError(f"Step.from_gradients takes a function of (train_state, batch), got {type(fn).__name__}.")
        self.fn = fn

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return self.fn

    def __call__(self, state: TrainState, batch: Any) -> Gradients:
        result = self.fn(state, batch)
        if not (isinstance(result, tuple) and len(result) in (2, 3)):
            raise TypeError(
                f"the function of Step.from_gradients returned {type(result).__name__}, expected (grads, metrics) or "
                "(grads, metrics, model)."
            )
        grads, values, *model = result
        if not isinstance(values, Mapping) or "loss" not in values:
            raise ValueError("the function of Step.from_gradients must report a metric named 'loss'.")
        values = flat_metrics(values, "the function of Step.from_gradients returned")
        if not _is_per_row(grads, state.params):
            grads = cast_like(grads, state.params, "the gradients of Step.from_gradients: ", error=ValueError)
        model_state, rngs = state.carried(model[0]) if model else (state.model_state, state.rngs)
        return Gradients(grads, values, _of_trained_modules(state, model_state), rngs)


def _is_per_row(grads: Any, params: Any) -> bool:
    """Returns whether there is a gradient for each row, as optimizers of differential privacy take them."""
    if jax.tree.structure(grads) != jax.tree.structure(params):
        return False
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True)
    return all(jnp.ndim(g) == jnp.ndim(p) + 1 and jnp.shape(g)[1:] == jnp.shape(p) for g, p in pairs)


class EvalStep:
    """An evaluation step of the same loss function: `(state, batch) -> {name: value}`.

    Args:
        loss_fn: as for `Step`.
        class_weight: that of the training. It is not applied, but then a loss function may take `sample_weight`
            although no weights of rows were declared: they are 1.
    """

    def __init__(self, loss_fn: Callable[..., Any], *, class_weight: Mapping[int, float] | None = None) -> None:
        self.loss_fn = LossFunction(loss_fn, class_weight)

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return self.loss_fn if type(self) is EvalStep else Reference(self)

    def __call__(self, state: TrainState, batch: Any) -> dict[str, Any]:
        state = state.replace(key=jax.random.fold_in(state.key, _EVALUATION))
        return self.loss_fn(state.model(train=False), batch, state, train=False).metrics


def _of_trained_modules(state: TrainState, new: Any) -> Any:
    """Returns the non-trained arrays, without changes in modules whose parameters are all frozen."""
    if state.frozen is None:
        return new
    held, skip = is_held(state.params, state.frozen), _leading_parts(state)

    def leaf(path: Any, after: Any, before: Any) -> Any:
        return before if held(leaf_name(path[skip:])) else after

    return jax.tree_util.tree_map_with_path(leaf, new, state.model_state)


def _leading_parts(state: TrainState) -> int:
    """Returns 1 if paths of non-trained arrays begin with the name of a collection, as in Linen; otherwise 0."""
    return 1 if getattr(state.adapter, "by_collection", False) else 0


def _held(action: ScaleUpdates, state: TrainState, new: Any) -> Any:
    """Returns the non-trained arrays, without changes where the action freezes: statistics belong to their layer."""
    frozen = jnp.asarray(action.when) & (jnp.asarray(action.factor) == 0)
    skip = _leading_parts(state)

    def leaf(path: Any, after: Any, before: Any) -> Any:
        held = after is not before and matches(action.where, leaf_name(path[skip:]))
        return jnp.where(frozen, before, after) if held else after

    return jax.tree_util.tree_map_with_path(leaf, new, state.model_state)


def _scale(updates: Any, action: ScaleUpdates) -> Any:
    factor = jnp.where(action.when, action.factor, 1.0)
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    check_pattern(action.where, names, action.owner or "ScaleUpdates")

    def leaf(path: Any, update: Array) -> Array:
        if not matches(action.where, leaf_name(path)):
            return update
        # NaN * 0 is NaN, so 0 is a case of its own; and adding -0.0, unlike 0.0, changes no number
        return jnp.where(factor == 0, -0.0, update * factor).astype(update.dtype)

    return jax.tree_util.tree_map_with_path(leaf, updates)
