"""The learning rate: an optax schedule times the callbacks' scale, read inside the optimizer."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer

from jaxcb._src.utils.errors import check_number, did_you_mean, shown
from jaxcb._src.utils.pytree import Struct, map_nodes, nodes_of, on_device, static


class LearningRate(Struct):
    """The learning rate of a run: the single place where it is kept, in the optimizer's state.

    Attributes:
        count: updates that the optimizer has done, int32 ().
        scale: product of the callbacks' factors, float32 ().
        override: base rate that a callback has set, or else a constant rate, float32 ().
        overridden: whether a callback has set `override`, bool ().
        applied: effective rate of the last update, float32 (); before the first update, that of the first.
        name: its name among several rates; empty for the only one.
        schedule: count -> base rate; `CONSTANT` for a constant rate, which is an array so that another rate needs no
            other program. None for a ready-made optimizer, of which only the final updates are scaled.
    """

    count: Any
    scale: Any
    override: Any
    overridden: Any
    applied: Any
    schedule: optax.Schedule | None = static(default=None)
    name: str = static(default="")

    @classmethod
    def create(cls, rate: Any, name: str = "") -> "LearningRate":
        """Returns the rate before the first update.

        Args:
            rate: a schedule, a constant (number or float32 ()), or None for a ready-made optimizer.
            name: its name among several rates.
        """
        one, zero = jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
        schedule: Any = rate if rate is None or callable(rate) else CONSTANT
        constant = on_device(rate, np.float32) if schedule is CONSTANT else zero
        state = cls(jnp.zeros((), jnp.int32), one, constant, jnp.zeros((), bool), one, schedule, name)
        return state.replace(applied=state.effective())

    def base(self, *, last: bool = False) -> Array:
        """Returns the base rate of the next update, or of the last one, float32 (); 1 for a ready-made optimizer."""
        if self.schedule is None:
            return jnp.ones_like(self.scale)
        if self.schedule is CONSTANT:
            return self.override
        count = jnp.maximum(self.count - 1, 0) if last else self.count
        scheduled = jnp.asarray(jax.vmap(self.schedule)(count) if jnp.ndim(count) else self.schedule(count))
        return jnp.where(self.overridden, self.override, scheduled.astype(jnp.float32))

    def effective(self) -> Array:
        """Returns the effective rate of the next update, float32 ()."""
        return self.base() * self.scale

    def updated(self) -> "LearningRate":
        """Returns the rate after one more update."""
        return self.replace(count=optax.safe_increment(self.count), applied=self.effective())

    def steered_as(self, other: "LearningRate") -> "LearningRate":
        """Returns the rate with the callbacks' changes of `other`."""
        return self.replace(scale=other.scale, override=other.override, overridden=other.overridden)

    def scaled(self, factor: Any, floor: Any) -> "LearningRate":
        """Returns the rate with its scale multiplied by `factor`, but its effective value not below `floor`."""
        scale = self.scale * factor
        base = self.base()
        held = floor / base
        # Rounding may put `base * held` above the floor: step down to the largest scale that does not.
        held = jnp.where(base * held > floor, jnp.nextafter(held, jnp.zeros_like(held)), held)
        return self.replace(scale=jnp.where((floor > 0) & (base * scale < floor), jnp.minimum(held, self.scale), scale))


def CONSTANT(count: Any) -> Any:
    """Stands for the schedule of a constant rate; it is never called, since the rate is in `override`."""
    raise NotImplementedError(f"a constant learning rate has no schedule to call with {count!r}")


class _Rate:
    """A rate for optax's slot for schedules with state (`StatefulSchedule`)."""

    def __init__(self, rate: Any, name: str) -> None:
        self.rate, self.name = rate, name

    def init(self) -> LearningRate:
        return LearningRate.create(self.rate, self.name)

    def update(self, state: LearningRate, **extra_args: Any) -> LearningRate:
        del extra_args
        return state.updated()

    def __call__(self, state: LearningRate, **extra_args: Any) -> Array:
        del extra_args
        return state.effective()


def adjustable_lr(
    factory: Callable[..., Any],
    *,
    learning_rate: float | optax.Schedule,
    hyperparameters: Mapping[str, float] | None = None,
    name: str = "",
) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer whose learning rate callbacks can scale, set and read, without a retrace.

    The effective rate is `learning_rate(count)` times the product of all callbacks' factors. It replaces the
    optimizer's own rate where the optimizer uses it, so it is correct for every optimizer.

    Args:
        factory: `learning_rate -> optax.GradientTransformation`, such as `optax.adam` or
            `lambda learning_rate: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate))`.
        learning_rate: a constant, or an optax schedule (count -> rate).
        hyperparameters: further numeric arguments of the factory, such as `{"weight_decay": 1e-4}`. They are kept in
            the optimizer's state, so that each member of a sweep can have its own.
        name: of the rate, if the optimizer is one of several: metrics call it `learning_rate/name`, and callbacks
            select it with `of=name`. `fit(optimizer={...})` sets it.

    Returns:
        An optax transformation.

    Raises:
        TypeError: if `factory` is a ready-made optimizer or does not take `learning_rate`, or a hyperparameter.

    Example:
        >>> import jaxcb as jc, optax
        >>> tx = jc.adjustable_lr(optax.adam, learning_rate=optax.cosine_decay_schedule(1e-3, 100))
        >>> state = jc.TrainState.create(params={"w": 1.0}, tx=tx)
        >>> state = jc.apply(jc.actions.ScaleLearningRate(0.5), state)
        >>> float(state.learning_rate.effective())
        0.0005000000237487257

    Source: the slot is optax's own, `optax.inject_hyperparams` with a `StatefulSchedule`.
    """
    if not callable(factory) or isinstance(factory, optax.GradientTransformation):
        raise TypeError(
            "adjustable_lr takes a function of the learning rate, such as optax.adam or "
            f"`lambda learning_rate: optax.adamw(learning_rate)`, got {type(factory).__name__}."
        )
    names = list(inspect.signature(factory).parameters)
    if not names:
        raise TypeError(f"adjustable_lr: {factory!r} takes no argument, expected learning_rate.")
    if hyperparameters is not None and not (
        isinstance(hyperparameters, Mapping) and all(isinstance(argument, str) for argument in hyperparameters)
    ):
        raise TypeError(
            f"adjustable_lr: hyperparameters must be a dict of names to numbers, got {shown(hyperparameters)}."
        )
    numbers = dict(hyperparameters or {})
    check_hyperparameters(factory, numbers)
    for argument, number in numbers.items():
        check_number("adjustable_lr", f"hyperparameters[{argument!r}]", number)
    if not isinstance(name, str):
        raise TypeError(f"adjustable_lr: name must be a string, got {shown(name)}.")
    rate = checked_rate("adjustable_lr", learning_rate)
    return AdjustableOptimizer.make(factory, rate, numbers, name)


def checked_rate(owner: str, rate: Any) -> Any:
    """Returns a learning rate: a schedule, or a float.

    Raises:
        ValueError: for a number that is no rate.
        TypeError: for a schedule that returns something else than a number.
    """
    if not callable(rate):
        if isinstance(rate, Tracer):
            return rate
        return check_number(owner, "learning_rate", rate, least=0.0)
    try:
        value = jax.eval_shape(lambda count: _as_rate(owner, rate(count)), jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:
        error.add_note(
            f"This happened in the schedule of {owner}, learning_rate={getattr(rate, '__name__', rate)!r}, which is "
            "called with the number of updates, int32 (), while it is traced, and returns the rate."
        )
        raise
    if value.shape != () or not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(
            f"{owner}: the schedule of learning_rate returns {value.dtype} of shape {value.shape}, expected one number."
        )
    return rate


def _as_rate(owner: str, value: Any) -> Array:
    if not isinstance(value, int | float | np.number | np.ndarray | Array):
        raise TypeError(
            f"{owner}: the schedule of learning_rate returns a {type(value).__name__}, expected one number. Is its "
            "`return` missing?"
        )
    return jnp.asarray(value)


class AdjustableOptimizer(optax.GradientTransformationExtraArgs):
    """The optax transformation of `adjustable_lr`.

    Two of them with equal program keys differ at most in a constant rate, which is in the optimizer's state.

    Attributes:
        rate: the constant rate; None for a schedule.
    """

    rate: float | None
    _made_from: tuple[Callable[..., Any], Any, dict[str, Any], str]

    @classmethod
    def make(
        cls, factory: Callable[..., Any], rate: Any, numbers: Mapping[str, Any], rate_name: str = ""
    ) -> "AdjustableOptimizer":
        """Makes it.

        Args:
            factory: as for `adjustable_lr`.
            rate: a schedule or a constant.
            numbers: further hyperparameters.
            rate_name: the name of the rate among several.
        """
        names = list(inspect.signature(factory).parameters)
        name = "learning_rate" if "learning_rate" in names else names[0]

        def make(**values: Any) -> Any:
            return factory(**values)

        # inject_hyperparams takes the names of its hyperparameters from the signature
        parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in (name, *numbers)]
        make.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        inject = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)
        tx = inject(**{name: _Rate(rate, rate_name)}, **numbers)

        def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
            updates, new = tx.update(updates, state, params, **extra_args)
            # a float32 rate must not widen the optimizer's state of a smaller dtype
            return updates, jax.tree.map(lambda n, o: n.astype(o.dtype) if n.dtype != o.dtype else n, new, state)

        self = cls(tx.init, update)
        self._made_from = (factory, rate, dict(numbers), rate_name)
        self.rate = None if callable(rate) else rate
        return self

    def with_rate(self, rate: Any) -> "AdjustableOptimizer":
        """Returns the optimizer with another constant rate, which may be traced."""
        factory, _, numbers, name = self._made_from
        return AdjustableOptimizer.make(factory, rate, numbers, name)

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        factory, rate, numbers, name = self._made_from
        return factory, rate if callable(rate) else None, numbers, name


def check_hyperparameters(factory: Any, names: Iterable[str]) -> None:
    """Checks that an optimizer's factory takes arguments of these names.

    Raises:
        TypeError: if not; the message lists the existing arguments.
    """
    signature = inspect.signature(factory)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return
    for name in names:
        if name not in signature.parameters:
            raise TypeError(
                f"the optimizer {getattr(factory, '__name__', factory)!r} takes no {name!r}. It takes "
                f"{', '.join(signature.parameters)}.{did_you_mean(name, signature.parameters)}"
            )


def scaled_updates(tx: optax.GradientTransformation, name: str = "") -> optax.GradientTransformationExtraArgs:
    """Wraps a ready-made optimizer so that callbacks can scale its final updates.

    This is correct if the rate is the last factor of the update, as optax's own `reduce_on_plateau` assumes.

    Args:
        tx: the optimizer.
        name: of its factor, if it is one of several.
    """
    inner = optax.with_extra_args_support(tx)

    def init(params: Any) -> Any:
        return LearningRate.create(None, name), inner.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        rate, inner_state = state
        updates, inner_state = inner.update(updates, inner_state, params, **extra_args)
        scaled = jax.tree.map(lambda u: (u * rate.effective()).astype(u.dtype), updates)
        return scaled, (rate.updated(), inner_state)

    wrapped = _ScaledOptimizer(init, update)
    wrapped.inner, wrapped.name = tx, name
    return wrapped


class _ScaledOptimizer(optax.GradientTransformationExtraArgs):
    """The optax transformation of `scaled_updates`."""

    inner: optax.GradientTransformation
    name: str

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return tuple(self.inner), self.name


def _is_rate(node: Any) -> bool:
    return isinstance(node, LearningRate)


def hyperparameters(opt_state: Any) -> dict[str, Array]:
    """Returns the hyperparameters in an optimizer's state, without the learning rate: name -> float32 ()."""
    found: dict[str, Array] = {}
    for node in nodes_of(opt_state, _is_injected):
        found |= {n: v for n, v in node.hyperparams.items() if n not in node.hyperparams_states}
    return found


def with_hyperparameters(opt_state: Any, values: Mapping[str, Any]) -> Any:
    """Returns the optimizer's state with other values of its hyperparameters."""

    def changed(node: Any) -> Any:
        numbers = {n: v for n, v in values.items() if n in node.hyperparams and n not in node.hyperparams_states}
        return node._replace(hyperparams={**node.hyperparams, **numbers})

    return map_nodes(changed, opt_state, _is_injected)


def _is_injected(node: Any) -> bool:
    return hasattr(node, "hyperparams_states") and hasattr(node, "_replace")


def learning_rates(opt_state: Any) -> list[LearningRate]:
    """Returns the learning rates that live in an optimizer's state."""
    return nodes_of(opt_state, _is_rate)


def map_learning_rates(fn: Callable[[LearningRate], LearningRate], opt_state: Any) -> Any:
    """Returns the optimizer's state with `fn` applied to each learning rate in it."""
    return map_nodes(fn, opt_state, _is_rate)


def with_constant_rates_of(opt_state: Any, configured: Any, tx: Any = None) -> Any:
    """Returns a restored optimizer's state with the constant rates of the configured one.

    The configuration comes from the code, not from the checkpoint. A rate that a callback has set is kept.

    Args:
        opt_state: as restored.
        configured: as the code made it, with the same structure.
        tx: its optimizer, which has the rate if `configured` has only shapes.
    """
    rates = iter(learning_rates(configured))

    def restored(rate: LearningRate) -> LearningRate:
        constant = next(rates).override
        if isinstance(constant, jax.ShapeDtypeStruct):
            constant = getattr(tx, "rate", None)
            constant = constant.get(rate.name) if isinstance(constant, Mapping) else constant
        if rate.schedule is not CONSTANT or constant is None:
            return rate
        return rate.replace(override=jnp.where(rate.overridden, rate.override, constant))

    return map_learning_rates(restored, opt_state)


def with_callback_lr_from(opt_state: Any, other: Any) -> Any:
    """Returns the optimizer's state with the callbacks' changes of the rates in another state of equal structure."""
    rates = iter(learning_rates(other))
    return map_learning_rates(lambda rate: rate.steered_as(next(rates)), opt_state)
