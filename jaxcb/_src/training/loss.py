"""`LossFunction`: calls the user's loss function with the keywords that it takes, and checks its result."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._src.core.metrics import is_mergeable
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.errors import check_int
from jaxcb._src.utils.pytree import Struct

_LABELS = ("label", "labels", "y", "target", "targets")
_KEYWORDS = ("key", "train", "controls", "state", "sample_weight")


class Out(Struct):
    """The full form of a loss function's result.

    Attributes:
        loss: a scalar.
        metrics: name -> array of fixed shape, or a metric that merges (clu, metrax).
        state: the new non-trained state, for a loss function that takes `state`.
        aux: further arrays for probes, such as the model's outputs; used for nothing else.
    """

    loss: Any
    metrics: Any = None
    state: Any = None
    aux: Any = None


class LossFunction:
    """A user's `loss_fn(model, batch)` with the keywords that it takes."""

    def __init__(self, loss_fn: Callable[..., Any], class_weight: Mapping[int, float] | None = None) -> None:
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be a function of (model, batch), got {type(loss_fn).__name__}.")
        self.fn = loss_fn
        self.keywords = _keywords(loss_fn)
        self.class_weight = dict(class_weight) if class_weight else None
        for label in self.class_weight or ():
            check_int("class_weight", "each label", label)
        if self.class_weight and "sample_weight" not in self.keywords:
            raise ValueError(
                "class_weight was given, but loss_fn does not use it. Take the weights of the rows as a keyword: "
                "`def loss_fn(model, batch, sample_weight): return (losses * sample_weight).mean()`."
            )

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return self.fn, self.class_weight

    def __call__(self, model: Any, batch: Any, state: TrainState, *, train: bool) -> Out:
        known = {
            "key": lambda: state.step_key(),
            "train": lambda: train,
            "controls": lambda: state.controls,
            "state": lambda: jax.tree.map(lambda x: x, state.model_state),  # an eqx.nn.State can be used once
            "sample_weight": lambda: _row_weights(batch, self.class_weight if train else None),
        }
        result = self.fn(model, batch, **{name: known[name]() for name in self.keywords})
        out = _as_out(result)
        loss = _as_array(out.loss, "a loss")
        if loss.shape != ():
            raise ValueError(f"loss_fn returned a loss of shape {loss.shape}, expected a scalar; take its mean.")
        if not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(f"loss_fn returned a loss of dtype {loss.dtype}, expected a floating-point one.")
        metrics = {} if out.metrics is None else out.metrics
        if not isinstance(metrics, Mapping):
            raise TypeError(
                f"loss_fn returned metrics as {type(metrics).__name__}, expected a dict of names to arrays: "
                "`return loss, {'accuracy': accuracy}`."
            )
        for name in metrics:
            if not isinstance(name, str) or not name:
                raise TypeError(f"loss_fn returned a metric with the name {name!r}, expected a non-empty string.")
        values = {k: _as_metric(v, f"the metric {k!r}") for k, v in metrics.items() if k != "loss"}
        return Out(loss, {"loss": loss, **values}, out.state, out.aux)


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


def _as_metric(value: Any, what: str) -> Any:
    return value if is_mergeable(value) else _as_array(value, what)


def _as_array(value: Any, what: str) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        cure = " Is its `return` missing?" if value is None else ""
        raise TypeError(f"loss_fn returned {what} of type {type(value).__name__}, expected an array.{cure}") from None


def _keywords(loss_fn: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the keywords that a loss function takes, without those that a `partial` has set."""
    try:
        parameters = tuple(inspect.signature(loss_fn).parameters)
    except ValueError:  # some builtins have no signature
        return ()
    given = getattr(loss_fn, "keywords", {}) if isinstance(loss_fn, functools.partial) else {}
    return tuple(name for name in parameters[2:] if name in _KEYWORDS and name not in given)


def _row_weights(batch: Any, class_weight: Mapping[int, float] | None) -> Array:
    """Returns the weight of each row, float32 (rows,): the batch's own times the weight of its class."""
    given, what, others = None, "", batch
    if isinstance(batch, Mapping) and "sample_weight" in batch:
        given, what = batch["sample_weight"], 'batch["sample_weight"]'
        others = {name: x for name, x in batch.items() if name != "sample_weight"}
    elif isinstance(batch, tuple | list) and len(batch) == 3:
        given, what, others = batch[2], "the third array of the batch", batch[:2]
    rows = jnp.shape((jax.tree.leaves(others) or jax.tree.leaves(batch))[0])[0]
    weights = jnp.ones((rows,), jnp.float32) if given is None else _checked_weights(given, rows, what)
    if class_weight:
        labels = _labels(batch)
        table = jnp.ones((max(class_weight) + 1,), jnp.float32)
        table = table.at[jnp.asarray(list(class_weight))].set(jnp.asarray(list(class_weight.values()), jnp.float32))
        known = (labels >= 0) & (labels < table.shape[0])
        weights = weights * jnp.where(known, table[jnp.where(known, labels, 0)], 1.0)
    return weights


def _checked_weights(given: Any, rows: int, what: str) -> Array:
    """Returns the weights as float32 (rows,). Any other shape would broadcast against the losses of the rows."""
    received = f"loss_fn takes sample_weight, which is {what}:"
    try:
        weights = jnp.asarray(given)
    except (TypeError, ValueError):
        raise ValueError(
            f"{received} a {type(given).__name__}, expected one number per row, an array of shape ({rows},)."
        ) from None
    if weights.shape != (rows,):
        if weights.size == rows and weights.ndim:
            cure = f"Flatten it: sample_weight.reshape(-1), or np.squeeze, has the shape ({rows},)."
        elif weights.shape[:1] == (rows,):
            cure = "Reduce it to one number per row, or give these weights another name in the batch and apply them in "
            cure += "loss_fn."
        else:
            cure = "Pass one number per row, with as many rows as the other arrays of the batch."
        raise ValueError(f"{received} an array of shape {weights.shape}, expected ({rows},). {cure}")
    if not (jnp.issubdtype(weights.dtype, jnp.floating) or jnp.issubdtype(weights.dtype, jnp.integer)):
        raise ValueError(
            f"{received} an array of dtype {weights.dtype} and shape {weights.shape}, expected floats or integers. "
            "Convert it where the data is created: sample_weight.astype(np.float32)."
        )
    return weights.astype(jnp.float32)


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
