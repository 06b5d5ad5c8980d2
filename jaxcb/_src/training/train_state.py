"""`TrainState`, its controls and named weights."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcb._src.core.callback import Callback
from jaxcb._src.models.trainable import Filter, joined, split_trainable
from jaxcb._src.training.learning_rate import LearningRate, learning_rates
from jaxcb._src.training.optimizer_call import initial_state
from jaxcb._src.training.schedule_free import evaluated, schedule_free_states
from jaxcb._src.utils.errors import check_number, check_seed, shown
from jaxcb._src.utils.pytree import Struct, on_device, static, to_strong_type

_PARTS = {
    "params": ("params",),
    "model": ("params", "model_state"),
    "optimizer": ("params", "model_state", "opt_state"),
}
NO_RATE = (
    "a callback changes the learning rate, but the optimizer does not support that. Use "
    "fit(optimizer=optax.adam, learning_rate=1e-3), or build the optimizer with "
    "jc.adjustable_lr(optax.adam, learning_rate=1e-3)."
)


class NamedWeights(Struct):
    """Copies of weights that a callback declares in `slots()`.

    Attributes:
        filled: whether they were ever written, bool ().
        value: field of the train state -> its copy.
    """

    filled: Any
    value: dict[str, Any]


class TrainState(Struct):
    """The part of a run's state that is on the device.

    Attributes:
        step: updates done, int32 ().
        params: the trained parameters, any pytree of arrays; `all_params` has the frozen ones, too.
        opt_state: the optimizer's state.
        model_state: the model's non-trained arrays, such as batch statistics.
        rngs: keys and counters of a model's random generators; never part of named weights.
        controls: name -> float32 (): numbers that actions set and a step may read.
        weights: named weights by `owner/name`.
        stop: whether a callback has stopped the run, bool ().
        key: the run's PRNG key; a step's own is `step_key()`.
        tx: the optax transformation.
        frozen: the parameters that `trainable=` left out, with None in place of the trained ones. They are read-only:
            no program donates, copies or returns them, and no checkpoint contains them. None if all are trained.
        adapter: builds the user's model from `params` and `model_state`, if there is a model.
    """

    step: Any
    params: Any
    opt_state: Any
    model_state: Any
    rngs: Any
    controls: dict[str, Any]
    weights: dict[str, NamedWeights]
    stop: Any
    key: Any
    frozen: Any = None
    tx: optax.GradientTransformation | None = static(default=None)
    adapter: Any = static(default=None)

    @classmethod
    def create(  # noqa: PLR0913
        cls,
        *,
        params: Any,
        tx: optax.GradientTransformation | None = None,
        opt_state: Any = None,
        model_state: Any = None,
        rngs: Any = None,
        controls: Mapping[str, float] | None = None,
        callbacks: Callback | None = None,
        seed: int | Array = 0,
        adapter: Any = None,
        trainable: Filter | None = None,
    ) -> "TrainState":
        """Makes the state before the first step.

        Args:
            params: any pytree of arrays.
            tx: an optax transformation; `adjustable_lr` makes one whose learning rate callbacks can change.
            opt_state: the optimizer's state; `tx.init(params)` if None.
            model_state: non-trained arrays.
            rngs: state of random generators.
            controls: name -> number.
            callbacks: allocates the named weights of these callbacks, for hand-written loops.
            seed: an integer or a PRNG key.
            adapter: rebuilds the user's model; `from_nnx` sets it.
            trainable: which parameters are trained: a pattern of paths (`head/**`), `jc.models.AllBut(...)`, a
                predicate of (path, array), a type of NNX Variables, or a sequence of these. The others are in `frozen`;
                gradients and optimizer know `params` alone. None trains all.

        Returns:
            A `TrainState`. It holds the given arrays, not copies.

        Raises:
            TypeError: for another kind of `trainable`.
            ValueError: if `trainable` selects nothing.

        Example:
            >>> import jaxcb as jc, optax
            >>> state = jc.TrainState.create(params={"w": jnp.ones(3)}, tx=optax.sgd(0.1))
            >>> int(state.apply_gradients({"w": jnp.ones(3)}).step)
            1
        """
        if tx is not None and not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
            cure = ", the result of a factory such as optax.adam(1e-3)" if callable(tx) else ""
            raise TypeError(
                f"TrainState.create: tx must be an optax.GradientTransformation{cure}, or None, got {shown(tx)}."
            )
        if callbacks is not None and not isinstance(callbacks, Callback):
            raise TypeError(
                f"TrainState.create: callbacks must be a callback, such as jc.chain(...), got {shown(callbacks)}."
            )
        params, frozen = split_trainable(
            trainable,
            jax.tree.map(to_strong_type, params),
            getattr(adapter, "variable_types", None),
            "TrainState.create",
        )
        if opt_state is None and tx is not None:
            opt_state = initial_state(tx, params, compiled=True)
        key = seed if _is_key(seed) else jax.random.key(check_seed("TrainState.create", seed))
        state = cls(
            step=to_strong_type(0),
            params=params,
            opt_state=jax.tree.map(to_strong_type, opt_state),
            model_state=jax.tree.map(to_strong_type, model_state),
            rngs=jax.tree.map(to_strong_type, rngs),
            controls={k: on_device(v, np.float32) for k, v in checked_controls(controls).items()},
            weights={},
            stop=to_strong_type(False),
            key=key,
            frozen=frozen,
            tx=tx,
            adapter=adapter,
        )
        return state if callbacks is None else state.with_slots(callbacks)

    def init_optimizer(self) -> "TrainState":
        """Returns the state with an optimizer state. The run makes it only now, so that there is never a second one."""
        if self.tx is None or self.opt_state is not None:
            return self
        return self.replace(opt_state=jax.tree.map(to_strong_type, initial_state(self.tx, self.params)))

    @classmethod
    def from_nnx(cls, model: Any, optimizer: Any, **kwargs: Any) -> "TrainState":
        """Makes a state from a Flax NNX model and its `nnx.Optimizer`; `update_nnx` writes it back.

        Args:
            model: an `nnx.Module`.
            optimizer: an `nnx.Optimizer` for it.
            **kwargs: `controls`, `callbacks` and `seed` as in `create`.

        Returns:
            A `TrainState` that shares no Variable with the model.
        """
        from jaxcb._src.models import nnx as adapters

        adapter = adapters.NNX(model, wrt=optimizer.wrt)
        params, model_state, rngs = adapter.split()
        opt_state, step = adapters.read_optimizer(optimizer)
        state = cls.create(
            params=params,
            tx=optimizer.tx,
            opt_state=opt_state,
            model_state=model_state,
            rngs=rngs,
            adapter=adapter,
            **kwargs,
        )
        return state.replace(step=step)

    def update_nnx(self, model: Any, optimizer: Any = None) -> None:
        """Writes the state into the Flax NNX model, and into its optimizer if one is given."""
        from jaxcb._src.models import nnx as adapters

        adapters.write(model, self.all_params, self.model_state, self.rngs)
        if optimizer is not None:
            adapters.write_optimizer(optimizer, self.opt_state, self.step)

    def model(self, *, train: bool = False) -> Any:
        """Returns the user's model with the weights of this state, in its training or evaluation view.

        The evaluation view has the optimizer's own weights for evaluation, if it keeps some.
        """
        params = self.all_params if train else self.delivered_params()
        if self.adapter is None:
            return params
        return self.adapter.merge(params, self.model_state, self.rngs, train=train, key=self.step_key())

    @property
    def all_params(self) -> Any:
        """The trained and the frozen parameters, as one tree."""
        return joined(self.params, self.frozen)

    def delivered_params(self) -> Any:
        """Returns all parameters for the user: those to evaluate, and the frozen ones."""
        return joined(self.evaluation_params(), self.frozen)

    def evaluation_params(self) -> Any:
        """Returns the trained parameters to evaluate, to export and to compare.

        They are `params`, except with `optax.contrib.schedule_free`, which trains at other points than it has found.
        """
        (free,) = schedule_free_states(self.opt_state)[:1] or (None,)
        if free is None or self.params is None:
            return self.params
        if jnp.ndim(self.stop):
            return jax.vmap(evaluated)(free, self.params)
        return evaluated(free, self.params)

    def carried(self, model: Any) -> tuple[Any, Any]:
        """Returns `(model_state, rngs)` after the model's forward pass."""
        if self.adapter is None or self.adapter.explicit_state:
            return self.model_state, self.rngs
        return self.adapter.carried(model)

    def step_key(self) -> Array:
        """Returns the PRNG key of the next step: a function of the run's key and the step."""
        return jax.random.fold_in(self.key, self.step)

    @property
    def learning_rate(self) -> LearningRate:
        """The learning rate that callbacks can change."""
        rates = learning_rates(self.opt_state)
        if not rates:
            raise ValueError(NO_RATE)
        if len(names := [rate.name for rate in rates if rate.name]) > 1:
            raise ValueError(
                f"the train state has the learning rates {', '.join(names)}; read one of them: "
                f"state.learning_rates[{names[0]!r}]."
            )
        return rates[0]

    @property
    def learning_rates(self) -> dict[str, LearningRate]:
        """The learning rates that callbacks can change, by name; an unnamed one is that of the key ""."""
        return {rate.name: rate for rate in reversed(learning_rates(self.opt_state))}

    def apply_gradients(self, grads: Any, *, model: Any = None, **extra: Any) -> "TrainState":
        """Returns the state after one update of the optimizer.

        Args:
            grads: gradients with the structure of `params`.
            model: the user's model after its forward pass, from which the new non-trained arrays are
                taken; None to leave them unchanged.
            **extra: what the optimizer asks for besides, such as `value`, `grad` and `value_fn` of a line search.
        """
        if self.tx is None:
            raise ValueError("this TrainState was made without tx=, so it has no optimizer to apply gradients with.")
        updates, opt_state = self.tx.update(grads, self.opt_state, self.params, **extra)
        model_state, rngs = (self.model_state, self.rngs) if model is None else self.carried(model)
        return self.replace(
            step=self.step + 1,
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            model_state=model_state,
            rngs=rngs,
        )

    def with_slots(self, callbacks: Callback) -> "TrainState":
        """Returns the state with the named weights that `callbacks` declare, zeroed and not filled."""
        weights = dict(self.weights)
        for key, of in callbacks.slots().items():
            if of not in _PARTS:
                raise ValueError(f"named weights {key!r} are copies of {of!r}, expected one of {', '.join(_PARTS)}.")
            copy = {part: jax.tree.map(jnp.zeros_like, getattr(self, part)) for part in _PARTS[of]}
            weights.setdefault(key, NamedWeights(jnp.zeros_like(self.stop), copy))
        return self.replace(weights=weights)


def _is_key(seed: Any) -> bool:
    """Returns whether a seed is a PRNG key, or several, typed or raw."""
    if not isinstance(seed, jax.Array):
        return False
    return jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) or (seed.dtype == jnp.uint32 and seed.ndim > 0)


def checked_controls(controls: Any) -> dict[str, Any]:
    """Returns the controls as numbers.

    Raises:
        TypeError: if they are not a mapping of names.
        ValueError: for a value that is no finite number.
    """
    if controls is not None and not isinstance(controls, Mapping):
        raise TypeError(f"controls must be a dict of names to numbers, got a {type(controls).__name__}.")
    found = {}
    for name, value in (controls or {}).items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"controls: a name must be a string that is not empty, got {name!r}.")
        found[name] = check_number("controls", name, value)
    return found
