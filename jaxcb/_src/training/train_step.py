"""`Step`: a loss and an optimizer as one training step in two halves, with all that is known between them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxcb._src.core.actions.control import Restore, ScaleUpdates, SkipUpdate, Swap
from jaxcb._src.core.actions.utils import as_actions
from jaxcb._src.training.learning_rate import with_callback_lr_from
from jaxcb._src.training.loss import LossFunction
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.leaf_names import check_pattern, leaf_name, matches
from jaxcb._src.utils.pytree import Struct, cast_like, select

_EVALUATION = 0x6576616C  # sets the keys of an evaluation apart from those of training


class Gradients(Struct):
    """What a loss gives before any optimizer has seen it.

    Attributes:
        grads: in the form of the params.
        values: the metrics of the step, `loss` among them.
        model_state: as the forward pass left it.
        rngs: likewise.
        aux: what the loss function handed out for probes.
    """

    grads: Any
    values: dict[str, Any]
    model_state: Any
    rngs: Any
    aux: Any = None


class PendingUpdate(Struct):
    """A step between its halves: the update is known and not yet applied."""

    gradients: Gradients
    updates: Any
    opt_state: Any


class Step:
    """A training step that shows its gradients and updates before they are applied.

    `fit` makes one; with `Loop` it is a ready `train_step` for which `on_before_update` and probes work.

    Args:
        loss_fn: `loss_fn(model, batch)` returning `loss`, `(loss, {name: value})` or `Out`. It may ask by
            keyword for `key` (the step's PRNG key), `train`, `controls`, `state` and `sample_weight`.
        class_weight: label -> weight, multiplied into `sample_weight` while training.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> step = jc.Step(lambda params, batch: jnp.mean((params["w"] - batch) ** 2))
        >>> state = jc.TrainState.create(params={"w": jnp.zeros(())}, tx=optax.sgd(0.5))
        >>> state, values = step(state, jnp.ones(4))
        >>> float(values["loss"]), float(state.params["w"])
        (1.0, 1.0)
    """

    def __init__(self, loss_fn: Callable[..., Any], *, class_weight: Mapping[int, float] | None = None) -> None:
        self._gradients: Callable[[TrainState, Any], Gradients] = LossGradients(LossFunction(loss_fn, class_weight))

    @classmethod
    def from_gradients(cls, fn: Callable[[TrainState, Any], Any]) -> "Step":
        """Makes a step of gradients that you compute yourself: per-example clipping, several losses, a custom VJP.

        Args:
            fn: `fn(train_state, batch) -> (grads, {name: value})`; `loss` must be among the values. A third result
                is the model after its forward pass, of which the new non-trained arrays are taken.

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

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        proposal = self.compute_update(state, batch)
        return self.update(state, proposal), proposal.gradients.values

    def compute_update(self, state: TrainState, batch: Any) -> PendingUpdate:
        """Computes loss, gradients and updates; changes nothing."""
        if state.tx is None:
            raise ValueError("this TrainState was made without tx=, so a Step has no optimizer to update it with.")
        gradients = self._gradients(state, batch)
        tx, loss = optax.with_extra_args_support(state.tx), gradients.values["loss"]
        updates, opt_state = tx.update(gradients.grads, state.opt_state, state.params, value=loss, grad=gradients.grads)
        return PendingUpdate(gradients, updates, opt_state)

    def activations(self, state: TrainState, batch: Any) -> dict[str, Array]:
        """Runs the training forward pass of a batch, and returns what the model's modules return, by path.

        Raises:
            ValueError: where the modules do not tell, or the gradients are computed by a function of the user's.
        """
        loss_fn, adapter = getattr(self._gradients, "loss_fn", None), state.adapter
        if loss_fn is None or adapter is None:
            what = "Step.from_gradients" if loss_fn is None else "a TrainState that was made without a model"
            raise ValueError(
                f"activations cannot be known with {what}. Hand out what is to be looked at as a metric, or use fit."
            )
        return adapter.activations(state.model(train=True), lambda model: loss_fn(model, batch, state, train=True).loss)

    def update(self, state: TrainState, proposal: PendingUpdate, actions: Any = None) -> TrainState:
        """Applies what was proposed, as far as `actions` of `on_before_update` let it."""
        updates, gradients = proposal.updates, proposal.gradients
        for action in as_actions(actions):
            if isinstance(action, ScaleUpdates):
                updates = _scale(updates, action)
        new = state.replace(
            params=optax.apply_updates(state.params, updates),
            # what callbacks asked of the rate between the halves holds from the next update on
            opt_state=with_callback_lr_from(proposal.opt_state, state.opt_state),
            model_state=gradients.model_state,
        )
        for action in as_actions(actions):
            if isinstance(action, SkipUpdate):
                new = select(action.when, state, new)
            elif isinstance(action, Restore | Swap):  # the update is one of the weights that were there before
                new = select(action.when & state.weights[action.key].filled, state, new)
        return new.replace(step=state.step + 1, rngs=gradients.rngs)


class LossGradients:
    """The gradients of a loss function, by differentiating it."""

    def __init__(self, loss_fn: LossFunction) -> None:
        self.loss_fn = loss_fn

    def __call__(self, state: TrainState, batch: Any) -> Gradients:
        def loss(params: Any) -> tuple[Array, Any]:
            model = state.replace(params=params).model(train=True)
            out = self.loss_fn(model, batch, state, train=True)
            model_state, rngs = state.carried(model)
            if out.state is not None:
                model_state = out.state
            return out.loss, (out.metrics, model_state, rngs, out.aux)

        (_, (values, model_state, rngs, aux)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        model_state = cast_like(model_state, state.model_state, "the model's state after loss_fn: ", error=ValueError)
        return Gradients(grads, values, model_state, rngs, aux)


class CustomGradients:
    """Gradients that a user's function computes."""

    def __init__(self, fn: Callable[[TrainState, Any], Any]) -> None:
        if not callable(fn):
            raise TypeError(f"Step.from_gradients takes a function of (train_state, batch), got {type(fn).__name__}.")
        self.fn = fn

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
        grads = cast_like(grads, state.params, "the gradients of Step.from_gradients: ", error=ValueError)
        model_state, rngs = state.carried(model[0]) if model else (state.model_state, state.rngs)
        return Gradients(grads, dict(values), model_state, rngs)


class EvalStep:
    """An evaluation step of the same loss function: `(state, batch) -> {name: value}`."""

    def __init__(self, loss_fn: Callable[..., Any]) -> None:
        self.loss_fn = LossFunction(loss_fn)

    def __call__(self, state: TrainState, batch: Any) -> dict[str, Any]:
        state = state.replace(key=jax.random.fold_in(state.key, _EVALUATION))
        return self.loss_fn(state.model(train=False), batch, state, train=False).metrics


def _scale(updates: Any, action: ScaleUpdates) -> Any:
    factor = jnp.where(action.when, action.factor, 1.0)
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    check_pattern(action.where, names, action.owner or "ScaleUpdates")

    def leaf(path: Any, update: Array) -> Array:
        if not matches(action.where, leaf_name(path)):
            return update
        # a NaN times 0 is a NaN; and -0.0, unlike 0.0, leaves every number that it is added to as it is
        return jnp.where(factor == 0, -0.0, update * factor).astype(update.dtype)

    return jax.tree_util.tree_map_with_path(leaf, updates)
