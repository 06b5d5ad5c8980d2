"""Probes: functions of a training step's gradients and updates, and ready-made ones for their norms.

    jc.fit(..., metrics={"grad_norm": jc.probes.grad_norm(every=100)})

Source of the update ratio: A. Karpathy, "A Recipe for Training Neural Networks"; about 1e-3 is healthy.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxcb._src.training.loss import Weighted, check_real, unweighted
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.train_step import PendingUpdate
from jaxcb._src.utils.errors import check_bool, check_int
from jaxcb._src.utils.names import leaf_name
from jaxcb._src.utils.pytree import Struct, static


class StepView(Struct):
    """The values of a step that a probe can read, before the update is applied.

    Attributes:
        params: the trained parameters before the update; `state.all_params` has the frozen ones, too.
        grads: the gradients, with the structure of `params`.
        updates: the updates that will be added to `params`.
        batch: the step's batch.
        values: the step's metrics.
        aux: `aux` of the loss function's `jc.Out`, such as the model's outputs.
        state: the whole train state.
        forward: runs the model on the step's batch for `activations`; None if the run cannot call the model.
    """

    params: Any
    grads: Any
    updates: Any
    batch: Any
    values: dict[str, Any]
    aux: Any
    state: TrainState
    forward: Callable[[TrainState, Any], dict[str, Array]] | None = static(default=None)

    @property
    def activations(self) -> dict[str, Array]:
        """The outputs of a Flax model's modules for the batch, by path. Costs one more forward pass.

        Raises:
            ValueError: if they are not available.
        """
        if self.forward is None:
            raise ValueError(
                "activations are available where jaxcb runs the model: in fit, and with jc.Step(loss_fn). Elsewhere, "
                "return the arrays as jc.Out(aux=...), or as a metric."
            )
        return self.forward(self.state, self.batch)


class Probe(Struct):
    """A measurement of the training step; returned by `probe`.

    Attributes:
        fn: a pure function of a `StepView`.
        every: steps between two measurements.
    """

    fn: Callable[[StepView], Any] = static()
    every: int = static(default=1)

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"probe: fn must be a function of one `StepView`, got a {type(self.fn).__name__}.")
        self._set("every", check_int("probe", "every", self.every, least=1))


def probe(fn: Callable[[StepView], Any], *, every: int = 1) -> Probe:
    """Makes a probe: a measurement within the compiled training step, computed only when it is due.

    Args:
        fn: a pure function of a `StepView` (`params`, `grads`, `updates`, `batch`, `values`, `aux`, `state`) that
            returns an array of fixed shape, or a dict of arrays.
        every: steps between two measurements: one is due where the number of updates done is a multiple of it.

    Returns:
        A `Probe`, for the dict `metrics` of `fit` or a callback's `probes()`. Its result is a metric under its name,
        or `name/key` for each key of a dict. Between two measurements the metric keeps its value and is not fresh.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> norm = jc.probe(lambda look: optax.tree.norm(look.grads), every=2)
        >>> result = jc.fit(jnp.ones(()), lambda w, x: jnp.mean(w * x), jnp.ones(8), batch_size=2,
        ...                 optimizer=optax.sgd(0.1), epochs=1, metrics={"grad_norm": norm}, verbose=0)
        >>> result.history["grad_norm"].shape
        (1,)
    """
    return Probe(fn, every)


class Evaluator(Struct):
    """A function of the model that the host calls at each validation; `evaluator` makes it.

    Attributes:
        fn: a function of the model that returns a number, or several: as a sequence, or as a dict by name.
    """

    fn: Callable[[Any], Any] = static()

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"evaluator takes a function of the model, got {type(self.fn).__name__}.")


def evaluator(fn: Callable[[Any], Any]) -> Evaluator:
    """Makes a metric that the host computes from the model at each validation.

    Args:
        fn: `fn(model)` returns a number. If the metric's key in `metrics=` is a tuple of names, it returns as many
            numbers, as a sequence in their order or as a dict.

    Returns:
        An `Evaluator`, for the dict `metrics` of `fit`.

    Raises:
        TypeError: if `fn` is not callable.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp, optax
        >>> weight = jc.probes.evaluator(lambda w: float(w))
        >>> result = jc.fit(jnp.ones(()), lambda w, x: jnp.mean(w * x), jnp.ones(8), optimizer=optax.sgd(0.5),
        ...                 epochs=1, validation_data=jnp.ones(8), metrics={"val_weight": weight}, verbose=0)
        >>> result.history["val_weight"].tolist()
        [0.5]
    """
    return Evaluator(fn)


class HostMetric(Struct):
    """A function without arguments that the host calls between two dispatches; `host_metric` makes it.

    Attributes:
        fn: a function without arguments that returns a number.
    """

    fn: Callable[[], Any] = static()

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"host_metric takes a function without arguments, got {type(self.fn).__name__}.")


def host_metric(fn: Callable[[], Any]) -> HostMetric:
    """Makes a metric that the host reads between two calls of the compiled loop, such as a temperature.

    Args:
        fn: a function without arguments that returns a number. Callbacks read it as `metrics["name"]`.

    Returns:
        A `HostMetric`, for the dict `metrics` of `fit`.

    Raises:
        TypeError: if `fn` is not callable.

    Example:
        >>> import jaxcb as jc
        >>> jc.probes.host_metric(lambda: 21.5).fn()
        21.5
    """
    return HostMetric(fn)


def look(
    state: TrainState,
    proposal: PendingUpdate,
    batch: Any,
    forward: Callable[[TrainState, Any], dict[str, Array]] | None = None,
) -> StepView:
    """Returns the values of a step for probes and lazy log actions."""
    gradients, run = proposal.gradients, forward
    if forward is not None and isinstance(batch, Weighted):
        run = lambda state, _: forward(state, batch)  # noqa: E731 - the loss function needs the weights as well
    return StepView(
        params=state.params,
        grads=gradients.grads,
        updates=proposal.updates,
        batch=unweighted(batch),
        values=gradients.values,
        aux=gradients.aux,
        state=state,
        forward=run,
    )


def readings(name: str, probe: Probe, seen: StepView) -> dict[str, Array]:
    """Runs a probe. An error names the probe.

    Returns:
        Metric name -> float32 array.
    """
    try:
        result = probe.fn(seen)
        named = {name: result}
        if isinstance(result, Mapping):
            named = {f"{name}/{key}": value for key, value in result.items()}
        arrays = {key: jnp.asarray(value) for key, value in named.items()}
        return {key: check_real(x, f"it returned {key!r}").astype(jnp.float32) for key, x in arrays.items()}
    except Exception as error:
        error.add_note(f"This happened in the probe {name!r}, which runs every {probe.every} steps.")
        raise


class _Norm(Struct):
    """The norm of one part of a `StepView`. Compares by value, so that equal probes are computed once."""

    of: str = static()
    per_layer: bool = static(default=False)

    def __call__(self, seen: StepView) -> Any:
        return _norms(getattr(seen, self.of), self.per_layer)


class _Ratio(Struct):
    """The norm of the updates divided by the norm of the parameters."""

    per_layer: bool = static(default=False)

    def __call__(self, seen: StepView) -> Any:
        updates, params = _norms(seen.updates, self.per_layer), _norms(seen.params, self.per_layer)
        return jax.tree.map(lambda u, p: u / jnp.maximum(p, jnp.finfo(jnp.float32).tiny), updates, params)


def _norms(tree: Any, per_layer: bool) -> Any:
    """Returns the l2 norm of a tree in float32; with `per_layer` that of each layer: path of its parameters -> norm."""
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    if not per_layer:
        return optax.tree.norm(wide)
    layers: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(wide):
        layers.setdefault(leaf_name(path[:-1]) or leaf_name(path), []).append(leaf)
    return {name: optax.tree.norm(leaves) for name, leaves in layers.items()}


def grad_norm(*, every: int = 1, per_layer: bool = False) -> Probe:
    """Makes a probe of the l2 norm of the gradients of the loss, before any clipping.

    Args:
        every: steps between two measurements.
        per_layer: a norm for each layer (`name/path/of/layer`) instead of one for all.

    Returns:
        A `Probe`.

    Example:
        >>> import jaxcb as jc
        >>> jc.probes.grad_norm(every=100).every
        100
    """
    return Probe(_Norm("grads", _per_layer(per_layer)), every)


def update_norm(*, every: int = 1, per_layer: bool = False) -> Probe:
    """Makes a probe of the l2 norm of the optimizer's updates; arguments as for `grad_norm`."""
    return Probe(_Norm("updates", _per_layer(per_layer)), every)


def param_norm(*, every: int = 1, per_layer: bool = False) -> Probe:
    """Makes a probe of the l2 norm of the parameters before the update; arguments as for `grad_norm`."""
    return Probe(_Norm("params", _per_layer(per_layer)), every)


def update_ratio(*, every: int = 1, per_layer: bool = False) -> Probe:
    """Makes a probe of the norm of the updates divided by that of the parameters; arguments as for `grad_norm`."""
    return Probe(_Ratio(_per_layer(per_layer)), every)


def _per_layer(given: Any) -> bool:
    return check_bool("probe", "per_layer", given)
