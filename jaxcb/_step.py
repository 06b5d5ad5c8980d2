"""`Step`: a loss and an optimizer as one training step in two halves, with the gradients between them."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxcb._actions import ScaleUpdates, SkipUpdate, as_actions
from jaxcb._check import whole
from jaxcb._form import conform
from jaxcb._paths import leaf_name, matches
from jaxcb._struct import Struct, select
from jaxcb._train_state import TrainState

_LABELS = ("label", "labels", "y", "target", "targets")
_KEYWORDS = ("key", "train", "controls", "state", "sample_weight")


_EVALUATION = 0x6576616C  # sets the keys of an evaluation apart from those of training


class Out(Struct):
    """What a loss function may return.

    Attributes:
        loss: a scalar.
        metrics: name -> array of fixed shape.
        state: the new non-trained state, for a loss function that asked for `state`.
    """

    loss: Any
    metrics: Any = None
    state: Any = None


class Gradients(Struct):
    """A step between its halves: loss and gradients are known, nothing is applied yet."""

    values: dict[str, Array]
    grads: Any
    model_state: Any
    rngs: Any


class LossFunction:
    """A user's `loss_fn(model, batch)` with the keywords that it asks for."""

    def __init__(self, loss_fn: Callable[..., Any], class_weight: Mapping[int, float] | None = None) -> None:
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be a function of (model, batch), got {type(loss_fn).__name__}.")
        self.fn = loss_fn
        self.asked = _asked(loss_fn)
        self.class_weight = dict(class_weight) if class_weight else None
        for label in self.class_weight or ():
            whole("fit", "each label of class_weight", label)
        if self.class_weight and "sample_weight" not in self.asked:
            raise ValueError(
                "class_weight was given, but loss_fn does not use it. Ask for the weights of the rows by keyword: "
                "`def loss_fn(model, batch, sample_weight): return (losses * sample_weight).mean()`."
            )

    def __call__(self, model: Any, batch: Any, state: TrainState, *, train: bool) -> Out:
        known = {
            "key": lambda: state.step_key(),
            "train": lambda: train,
            "controls": lambda: state.controls,
            "state": lambda: jax.tree.map(lambda x: x, state.model_state),  # an eqx.nn.State can be used once
            "sample_weight": lambda: _row_weights(batch, self.class_weight if train else None),
        }
        result = self.fn(model, batch, **{name: known[name]() for name in self.asked})
        out = _as_out(result)
        loss = _as_array(out.loss, "a loss")
        if loss.shape != ():
            raise ValueError(f"loss_fn returned a loss of shape {loss.shape}, expected a scalar; take its mean.")
        if not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(f"loss_fn returned a loss of dtype {loss.dtype}, expected a floating one.")
        metrics = {} if out.metrics is None else out.metrics
        if not isinstance(metrics, Mapping):
            raise TypeError(
                f"loss_fn returned metrics as {type(metrics).__name__}, expected a dict of names to arrays: "
                "`return loss, {'accuracy': accuracy}`."
            )
        for name in metrics:
            if not isinstance(name, str) or not name:
                raise TypeError(
                    f"loss_fn returned a metric with the name {name!r}, expected a string, not an empty one."
                )
        values = {k: _as_array(v, f"the metric {k!r}") for k, v in metrics.items() if k != "loss"}
        return Out(loss, {"loss": loss, **values}, out.state)


def _as_out(result: Any) -> Out:
    if isinstance(result, Out):
        return result
    if isinstance(result, tuple):
        if len(result) != 2:
            raise TypeError(
                f"loss_fn returned a tuple of {len(result)}, expected `loss`, `(loss, metrics)` or "
                "`jc.Out(loss, metrics, state)`."
            )
        return Out(*result)
    return Out(result)


def _as_array(value: Any, what: str) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        cure = " Is its `return` missing?" if value is None else ""
        raise TypeError(f"loss_fn returned {what} of type {type(value).__name__}, expected an array.{cure}") from None


def _asked(loss_fn: Callable[..., Any]) -> tuple[str, ...]:
    """The keywords that a loss function asks for: not its model and batch, nor what a `partial` has given."""
    try:
        parameters = tuple(inspect.signature(loss_fn).parameters)
    except ValueError:  # some builtins tell no signature
        return ()
    given = getattr(loss_fn, "keywords", {}) if isinstance(loss_fn, functools.partial) else {}
    return tuple(name for name in parameters[2:] if name in _KEYWORDS and name not in given)


class Step:
    """A training step that hands out its gradients before they are applied.

    `fit` makes one; with `Loop` it is a ready `train_step` for which `on_before_update` works.

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
        self.loss_fn = LossFunction(loss_fn, class_weight)

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        gradients = self.gradients(state, batch)
        return self.update(state, gradients), gradients.values

    def gradients(self, state: TrainState, batch: Any) -> Gradients:
        """Computes the loss and its gradients; changes nothing."""

        def loss(params: Any) -> tuple[Array, Any]:
            model = state.replace(params=params).model(train=True)
            out = self.loss_fn(model, batch, state, train=True)
            model_state, rngs = state.carried(model)
            if out.state is not None:
                model_state = out.state
            return out.loss, (out.metrics, model_state, rngs)

        (_, (values, model_state, rngs)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        model_state = conform(model_state, state.model_state, "the model's state after loss_fn: ", error=ValueError)
        return Gradients(values, grads, model_state, rngs)

    def update(self, state: TrainState, gradients: Gradients, actions: Any = None) -> TrainState:
        """Applies the gradients, as far as `actions` of `on_before_update` let them."""
        if state.tx is None:
            raise ValueError("this TrainState was made without tx=, so a Step has no optimizer to update it with.")
        tx, loss = optax.with_extra_args_support(state.tx), gradients.values["loss"]
        updates, opt_state = tx.update(gradients.grads, state.opt_state, state.params, value=loss, grad=gradients.grads)
        for action in as_actions(actions):
            if isinstance(action, ScaleUpdates):
                updates = _scale(updates, action)
        new = state.replace(
            params=optax.apply_updates(state.params, updates), opt_state=opt_state, model_state=gradients.model_state
        )
        for action in as_actions(actions):
            if isinstance(action, SkipUpdate):
                new = select(action.when, state, new)
        return new.replace(step=state.step + 1, rngs=gradients.rngs)


class EvalStep:
    """An evaluation step of the same loss function: `(state, batch) -> {name: value}`."""

    def __init__(self, loss_fn: Callable[..., Any]) -> None:
        self.loss_fn = LossFunction(loss_fn)

    def __call__(self, state: TrainState, batch: Any) -> dict[str, Array]:
        state = state.replace(key=jax.random.fold_in(state.key, _EVALUATION))
        return self.loss_fn(state.model(train=False), batch, state, train=False).metrics


def _scale(updates: Any, action: ScaleUpdates) -> Any:
    factor = jnp.where(action.when, action.factor, 1.0)
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    if not any(matches(action.where, name) for name in names):
        raise ValueError(
            f"{action.owner or 'ScaleUpdates'}: where={action.where!r} matches no parameter. Parameters: "
            f"{', '.join(names)}."
        )

    def leaf(path: Any, update: Array) -> Array:
        return (update * factor).astype(update.dtype) if matches(action.where, leaf_name(path)) else update

    return jax.tree_util.tree_map_with_path(leaf, updates)


def _row_weights(batch: Any, class_weight: Mapping[int, float] | None) -> Array:
    """The weight of each row, float32 (rows,): the batch's own times its class's."""
    rows = jnp.shape(jax.tree.leaves(batch)[0])[0]
    weights = jnp.ones((rows,), jnp.float32)
    if isinstance(batch, Mapping) and "sample_weight" in batch:
        weights = weights * batch["sample_weight"]
    elif isinstance(batch, tuple | list) and len(batch) == 3:
        weights = weights * batch[2]
    if class_weight:
        labels = _labels(batch)
        table = jnp.ones((max(class_weight) + 1,), jnp.float32)
        table = table.at[jnp.asarray(list(class_weight))].set(jnp.asarray(list(class_weight.values()), jnp.float32))
        known = (labels >= 0) & (labels < table.shape[0])
        weights = weights * jnp.where(known, table[jnp.where(known, labels, 0)], 1.0)
    return weights


def _labels(batch: Any) -> Array:
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        labels = batch[1]
    elif isinstance(batch, Mapping) and any(k in batch for k in _LABELS):
        labels = batch[next(k for k in _LABELS if k in batch)]
    else:
        raise ValueError(
            "class_weight needs the labels: batches must be (x, y), or dicts with one of the keys "
            f"{', '.join(_LABELS)}; got {type(batch).__name__}."
        )
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 1:
        raise ValueError(f"class_weight needs integer labels of shape (rows,), got {labels.dtype} {labels.shape}.")
    return labels
