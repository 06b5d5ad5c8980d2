"""`LossFunction`: calls the user's loss function with the keywords that it takes, and checks its result."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxcb._src.core.metrics import is_mergeable
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.errors import check_int, check_number, did_you_mean
from jaxcb._src.utils.pytree import Struct

_LABELS = ("label", "labels", "y", "target", "targets")
_KEYWORDS = ("key", "train", "controls", "state", "sample_weight")
# What other libraries call these; a parameter of such a name would never be passed.
_OTHER_NAMES = {
    "key": ("rng", "rngs", "prng", "prng_key", "rng_key", "random_key", "dropout_key", "dropout_rng", "keys"),
    "train": ("training", "is_training", "deterministic"),
    "sample_weight": ("sample_weights", "weight", "weights", "row_weights"),
    "controls": ("control",),
    "state": ("model_state", "batch_stats"),
}


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


class Weighted(Struct):
    """A batch, or a data set, with the weights of its rows that were declared beside it.

    Attributes:
        batch: what the loss function receives.
        sample_weight: a number per row.
    """

    batch: Any
    sample_weight: Any


def unweighted(batch: Any) -> Any:
    """Returns the batch that the loss function receives."""
    return batch.batch if isinstance(batch, Weighted) else batch


class LossFunction:
    """A user's `loss_fn(model, batch)` with the keywords that it takes."""

    def __init__(self, loss_fn: Callable[..., Any], class_weight: Mapping[int, float] | None = None) -> None:
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be a function of (model, batch), got {type(loss_fn).__name__}.")
        self.fn = loss_fn
        self.keywords = _keywords(loss_fn)
        self.class_weight = _class_weights(class_weight)
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
            "sample_weight": lambda: _row_weights(batch, self.class_weight, train=train),
        }
        if isinstance(batch, Weighted) and "sample_weight" not in self.keywords:
            raise ValueError(
                "sample_weight was given, but loss_fn does not use it. Take the weights of the rows as a keyword: "
                "`def loss_fn(model, batch, sample_weight): return (losses * sample_weight).mean()`."
            )
        try:
            result = self.fn(model, unweighted(batch), **{name: known[name]() for name in self.keywords})
        except NameError as error:
            _refuse_axis(error)
            raise
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
        named = flat_metrics(metrics, "loss_fn returned")
        if named.get("loss", out.loss) is not out.loss:
            raise ValueError(
                "loss_fn returned a metric called 'loss' that is not its loss, and only one of them can be reported "
                "under that name. Give the metric another name, such as 'base_loss'."
            )
        values = {k: _as_metric(v, f"the metric {k!r}") for k, v in named.items() if k != "loss"}
        return Out(loss, {"loss": loss, **values}, out.state, out.aux)


_UNBOUND_AXIS = re.compile(r"unbound axis name:? '?(\w+)")


def _refuse_axis(error: NameError) -> None:
    """Refuses a loss function that reduces over an axis of `jax.pmap`, which this run has not.

    Raises:
        ValueError: it says what to drop.
    """
    found = _UNBOUND_AXIS.search(str(error))
    if found is not None:
        raise ValueError(
            f"loss_fn, or a module that it calls, reduces over the axis {found[1]!r}, as a step under jax.pmap does, "
            f"and no axis has that name here. Drop axis_name={found[1]!r} from modules such as BatchNorm, and calls "
            f"such as jax.lax.pmean(x, {found[1]!r}). A batch is one array, also over a mesh, so that means are those "
            "of all rows."
        ) from error


def flat_metrics(metrics: Mapping[Any, Any], who: str) -> dict[str, Any]:
    """Returns nested dicts of metrics as one, with names such as `a/b`.

    Args:
        metrics: name -> value, or a dict of such.
        who: begins the messages, such as "loss_fn returned".

    Raises:
        TypeError: for a name that is not a string.
        ValueError: for a name that occurs twice.
    """
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{who} a metric with the name {name!r}, expected a non-empty string.")
        inner = flat_metrics(value, who) if isinstance(value, Mapping) and not is_mergeable(value) else {"": value}
        for rest, leaf in inner.items():
            full = f"{name}/{rest}" if rest else name
            if full in found:
                raise ValueError(f"{who} two metrics of the name {full!r}: one of them in a nested dict. Rename one.")
            found[full] = leaf
    return found


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
    return value if is_mergeable(value) else check_real(_as_array(value, what), f"loss_fn returned {what}")


def check_real(value: Any, what: str) -> Any:
    """Checks that a metric is of real numbers, as which it is recorded, and returns it.

    Args:
        value: an array, or its shape.
        what: begins the message, such as "loss_fn returned the metric 'x'".

    Raises:
        TypeError: for complex numbers, keys and texts.
    """
    kind = value.dtype
    if jnp.issubdtype(kind, jnp.complexfloating):
        raise TypeError(
            f"{what} of dtype {kind}, expected real numbers: its imaginary part would be lost. Return jnp.abs(x), or "
            "x.real and x.imag under a name each."
        )
    if not (jnp.issubdtype(kind, jnp.number) or jnp.issubdtype(kind, jnp.bool_)):
        raise TypeError(f"{what} of dtype {kind}, expected numbers.")
    return value


def _as_array(value: Any, what: str) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        cure = " Is its `return` missing?" if value is None else ""
        raise TypeError(f"loss_fn returned {what} of type {type(value).__name__}, expected an array.{cure}") from None


def _keywords(loss_fn: Callable[..., Any]) -> tuple[str, ...]:
    """Returns the keywords that a loss function takes, without those that a `partial` has set.

    Raises:
        TypeError: for a parameter that would never be passed, or fewer than two.
    """
    try:
        parameters = tuple(inspect.signature(loss_fn).parameters.values())
    except ValueError:  # some builtins have no signature
        return ()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(named) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise TypeError(
            f"loss_fn takes ({', '.join(p.name for p in parameters)}), expected (model, batch) and then any of "
            f"{', '.join(_KEYWORDS)}."
        )
    given = getattr(loss_fn, "keywords", {}) if isinstance(loss_fn, functools.partial) else {}
    further = [p for p in named[2:] if p.name not in given]
    for parameter in further:
        if parameter.name not in _KEYWORDS:
            _check_further(parameter, [p.name for p in named])
    return tuple(p.name for p in further if p.name in _KEYWORDS)


def _check_further(parameter: inspect.Parameter, names: list[str]) -> None:
    """Refuses a parameter that nothing passes. One with a default of its own is left alone, unless its name is wrong.

    Raises:
        TypeError: if it has no default, or another name for what could be passed.
    """
    name, takes = parameter.name, f"loss_fn takes ({', '.join(names)})"
    ours = next((own for own, others in _OTHER_NAMES.items() if name in others), None)
    if parameter.default is not parameter.empty and ours is None:
        return
    known = f"It is called as loss_fn(model, batch), and may take besides, by name: {', '.join(_KEYWORDS)}."
    if ours is not None:
        cure = f" The name for {name!r} is {ours!r}; or set it yourself: functools.partial(loss_fn, {name}=...)."
    elif len(names) == 3:
        first, second = names[1:]
        cure = f" The batch is one argument: def loss_fn({names[0]}, batch): {first}, {second} = batch."
    else:
        cure = f"{did_you_mean(name, _KEYWORDS)} Set it yourself: functools.partial(loss_fn, {name}=...)."
    raise TypeError(f"{takes}, but nothing passes {name!r}. {known}{cure}")


def _class_weights(class_weight: Any) -> dict[int, float] | None:
    """Checks `class_weight`, label -> weight."""
    if class_weight is None or (isinstance(class_weight, Mapping) and not class_weight):
        return None
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            f"class_weight must be a dict of labels to weights, such as {{0: 1.0, 1: 3.0}}, got a "
            f"{type(class_weight).__name__}."
        )
    found = {}
    for label, weight in class_weight.items():
        number = check_int("class_weight", "each label", label, concrete=True)
        found[number] = check_number("class_weight", f"the weight of label {label}", weight, least=0.0, concrete=True)
    return found


def _row_weights(batch: Any, class_weight: Mapping[int, float] | None, *, train: bool) -> Array:
    """Returns the weight of each row, float32 (rows,): the declared one times, in training, the weight of its class.

    Raises:
        ValueError: for weights of another form, and where they could only be guessed.
    """
    given, what, others, batch = None, "", batch, unweighted(declared := batch)
    named = isinstance(batch, Mapping) and "sample_weight" in batch
    if isinstance(declared, Weighted):
        given, what = declared.sample_weight, "that of the argument sample_weight"
        if named:
            raise ValueError('sample_weight was given, and batch["sample_weight"] too; leave one of them out.')
    elif named:
        given, what = batch["sample_weight"], 'batch["sample_weight"]'
        others = {name: x for name, x in batch.items() if name != "sample_weight"}
    elif isinstance(batch, tuple | list) and len(batch) > 2 and class_weight is None:
        raise ValueError(
            f"loss_fn takes sample_weight, but the batch is a {type(batch).__name__} of {len(batch)}, and no place of "
            "it is taken for the weights: a third array is data. Declare them with sample_weight=weights, or as "
            '{"x": x, "y": y, "sample_weight": weights}.'
        )
    rows = jnp.shape((jax.tree.leaves(others) or jax.tree.leaves(batch))[0])[0]
    weights = jnp.ones((rows,), jnp.float32) if given is None else _checked_weights(given, rows, what)
    return weights * _weights_of_classes(batch, class_weight) if class_weight and train else weights


def _weights_of_classes(batch: Any, class_weight: Mapping[int, float]) -> Array:
    """Returns the weight of each row's class, float32 (rows,); 1 for a label that is not listed."""
    labels, classes = _labels(batch)
    if classes is not None and max(class_weight) >= classes:
        raise ValueError(
            f"class_weight has the label {max(class_weight)}, but the labels are rows of {classes} columns, for the "
            f"classes 0 to {classes - 1}."
        )
    table = jnp.ones((max(class_weight) + 1,), jnp.float32)
    table = table.at[jnp.asarray(list(class_weight))].set(jnp.asarray(list(class_weight.values()), jnp.float32))
    known = (labels >= 0) & (labels < table.shape[0])
    return jnp.where(known, table[jnp.where(known, labels, 0)], 1.0)


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


def _labels(batch: Any) -> tuple[Array, int | None]:
    """Returns the label of each row, int32 (rows,), and the number of classes if the labels were rows of columns.

    As in Keras: numbers of shape (rows,) or (rows, 1), rounded if they are floats; the largest column otherwise.
    """
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
    if not jnp.issubdtype(labels.dtype, jnp.number) or jnp.issubdtype(labels.dtype, jnp.complexfloating):
        labels = labels.astype(jnp.int32) if labels.dtype == jnp.bool_ else labels
    real = jnp.issubdtype(labels.dtype, jnp.integer) or jnp.issubdtype(labels.dtype, jnp.floating)
    if not real or labels.ndim not in (1, 2) or 0 in labels.shape[1:]:
        raise ValueError(
            "class_weight needs one label per row: numbers of shape (rows,) or (rows, 1), or one-hot rows of shape "
            f"(rows, classes); got {labels.dtype} of shape {labels.shape}."
        )
    if labels.ndim == 2 and labels.shape[1] > 1:
        return jnp.argmax(labels, axis=-1), labels.shape[1]
    return jnp.round(labels.reshape(-1)).astype(jnp.int32), None
