"""Adapter of Flax Linen modules: a callable with the module's collections and keys.

This module never imports Flax: a Linen module already has `init` and `apply`.
"""

import contextlib
import inspect
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcb._src.models.adapter import avals, by_call, check_trainable
from jaxcb._src.utils.errors import check_seed, shown
from jaxcb._src.utils.pytree import cast_like, to_strong_type

# The names of a module's training argument, and their values in training.
_TRAIN_ARGUMENTS = {"train": True, "training": True, "is_training": True, "deterministic": False}

_CURE = (
    "The module seems to have a fixed mode. Make the mode an argument of __call__, which the run passes: `def "
    "__call__(self, x, *, train): ... {example}`; or pass a module for evaluation: jc.linen(module, x, "
    "eval_module=Net(..., deterministic=True)); or pass `deterministic` or `train` to the model in loss_fn, which may "
    "take the keyword `train`."
)

_CAPTURED = "intermediates"  # Linen's collection of the outputs of modules


def linen(
    module: Any,
    *inputs: Any,
    seed: int | jax.Array = 0,
    rngs: Sequence[str] = ("dropout",),
    variables: Mapping[str, Any] | None = None,
    eval_module: Any = None,
    **kwargs: Any,
) -> "Linen":
    """Makes a model from a Flax Linen module and sample inputs.

    The loss function calls it as `model(x)`, or `model.apply(x, method="encode")`. Parameters, batch
    statistics, dropout keys and the module's own `train`, `training` or `deterministic` argument are
    passed automatically; the loss function may also pass them. If a module has a fixed mode and draws random numbers
    in evaluation, there is a warning. Without `variables`, the initial values are those of
    `module.init(jax.random.key(seed), *inputs)`.

    Args:
        module: an instance of `flax.linen.Module`.
        *inputs: sample inputs of the module, for their shapes.
        seed: an integer or a PRNG key, for the initial values.
        rngs: names of the random streams that the module uses. Each call gets a new key for
            each stream, a function of the step's key.
        variables: existing initial variables; then no inputs are needed.
        eval_module: the module for evaluation, with the same parameters, where the mode is a field of the module:
            `jc.linen(Net(deterministic=False), x, eval_module=Net(deterministic=True))`. None is `module` itself.
        **kwargs: further arguments of the module at its initialisation.

    Returns:
        A model for `jc.fit`.

    Raises:
        TypeError: if `module` is not an instance of a Linen module, or there are no sample inputs.
        ValueError: if `eval_module` has other parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from jaxcb._src.models.linen import linen
        >>> adapter = linen(nn.Dense(3), jnp.ones((1, 2)))
        >>> params, model_state, rngs = adapter.split()
        >>> sorted(params), model_state, rngs
        (['bias', 'kernel'], {}, None)
    """
    _check_module("linen()", module)
    if eval_module is not None:
        _check_module("linen(): eval_module", eval_module)
    if not isinstance(seed, jax.Array):
        seed = check_seed("linen()", seed)
    if variables is None:
        if not inputs and not kwargs:
            raise TypeError(
                f"linen({type(module).__name__}) got no sample input, which Linen needs to infer the shapes of "
                "its parameters: jc.linen(module, x[:1])."
            )
        if not any(hasattr(x, "shape") or isinstance(x, int | float) for x in jax.tree.leaves((inputs, kwargs))):
            raise TypeError(
                f"linen({type(module).__name__}): inputs must be arrays, such as x[:1], got "
                f"{', '.join(map(shown, inputs))}."
            )
        key = seed if isinstance(seed, jax.Array) else jax.random.key(seed)
        added, _ = _train_arguments(module, None, inputs, kwargs, train=False)
        variables = module.init(key, *inputs, **kwargs, **added)
    tree: dict[str, Any] = _plain(variables)
    model = Linen(module, tree, rngs=rngs, eval_module=eval_module)
    if not inputs and not kwargs:
        return model
    if eval_module is not None:
        _check_same_parameters(module, eval_module, tree, rngs, inputs, kwargs)
    growing = _growing(model, inputs, kwargs)
    return Linen(module, {k: v for k, v in tree.items() if k not in growing}, rngs=rngs, eval_module=eval_module)


def _check_module(what: str, module: Any) -> None:
    """Checks for an instance of a Linen module."""
    if isinstance(module, type) or not (hasattr(module, "init") and hasattr(module, "apply")):
        got = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        raise TypeError(f"{what} got {got}, expected an instance of a flax.linen module: jc.linen(MyModule(...), x).")


def _check_same_parameters(
    module: Any, eval_module: Any, variables: Any, streams: Sequence[str], inputs: Any, kwargs: Any
) -> None:
    """Checks that a module for evaluation has the parameters of the one that is trained."""
    given = {k: v for k, v in kwargs.items() if k not in _TRAIN_ARGUMENTS}
    added, _ = _train_arguments(eval_module, None, inputs, given, train=False)
    keys = dict.fromkeys(("params", *streams), jax.random.key(0))
    made = _plain(jax.eval_shape(lambda: eval_module.init(keys, *inputs, **given, **added)))

    def shapes(tree: Any) -> dict[str, Any]:
        leaves = jax.tree_util.tree_leaves_with_path(tree.get("params", {}))
        return {jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf) for path, leaf in leaves}

    ours, theirs = shapes(variables), shapes(made)
    for path in (*ours, *theirs):
        if ours.get(path) != theirs.get(path):
            raise ValueError(
                f"linen(): eval_module, a {type(eval_module).__name__}, has other parameters than the "
                f"{type(module).__name__} that is trained: {path} has the shape {theirs.get(path, 'of none there')}, "
                f"expected {ours.get(path, 'none')}. Make both from one class, with another mode alone."
            )


class Linen:
    """Adapter of a Flax Linen module with its variables.

    `params` is the collection of that name, `model_state` a dict of all other collections.

    Args:
        module: an instance of `flax.linen.Module`.
        variables: its variables, with the collection `params`.
        rngs: names of the random streams that it uses.
        eval_module: the module for evaluation; None is `module`.

    Raises:
        TypeError: if a parameter is not a floating array; the message names it.
        ValueError: if there are no parameters.
    """

    explicit_state = False
    in_place = False
    by_collection = True  # paths in `model_state` begin with the name of a collection

    def __init__(
        self, module: Any, variables: Mapping[str, Any], *, rngs: Sequence[str] = ("dropout",), eval_module: Any = None
    ) -> None:
        if isinstance(rngs, str):
            raise TypeError(f"rngs= got the string {rngs!r}, expected a tuple of names: rngs=({rngs!r},).")
        if not isinstance(rngs, Sequence) or not all(isinstance(name, str) and name for name in rngs):
            raise TypeError(f"rngs= must be a tuple of names of random streams, got {shown(rngs)}.")
        if not isinstance(variables, Mapping):
            raise TypeError(f"variables must be a dict, as module.init returned it, got {shown(variables)}.")
        variables = _plain(variables)
        self.module = module
        self.eval_module = module if eval_module is None else eval_module
        self.streams = tuple(rngs)
        self._params = variables.get("params", {})
        self._state = {name: tree for name, tree in variables.items() if name != "params"}
        check_trainable(
            self._params,
            of=f"the Linen module {type(module).__name__}",
            elsewhere='Declare it with self.variable in a collection other than "params".',
        )
        self._form = avals(jax.tree.map(to_strong_type, self._state))
        self._warned: set[str] = set()  # streams, so that a run warns once about each

    @property
    def form(self) -> Any:
        """The modules with their attributes, the streams, and the structure of its variables."""
        return self.module, self.eval_module, self.streams, jax.tree.structure((self._params, self._state))

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return self.form

    def split(self) -> tuple[Any, Any, Any]:
        """Returns `(params, other collections, None)`; keys are derived from the step's key."""
        return jax.tree.map(to_strong_type, self._params), jax.tree.map(to_strong_type, self._state), None

    def release(self) -> None:
        """Keeps only the shapes."""
        self._params, self._state = avals(self.split()[:2])

    def merge(self, params: Any, model_state: Any, rngs: Any, *, train: bool, key: Any = None) -> "LinenModel":
        """Returns a callable that applies the module."""
        module = self.module if train else self.eval_module
        return LinenModel(module, params, model_state, streams=self.streams, train=train, key=key, warned=self._warned)

    def carried(self, model: "LinenModel") -> tuple[Any, Any]:
        """Returns the collections after the forward passes, and None."""
        return cast_like(model.state, self._form, "the collections after a forward pass: ", error=ValueError), None

    def deliver(self, params: Any, model_state: Any, rngs: Any) -> "LinenModel":
        """Returns a callable with these variables, in evaluation mode, for use outside of the run."""
        return self.merge(params, model_state, rngs, train=False)

    def call(self, model: "LinenModel", x: Any, model_state: Any = None) -> Any:
        """Returns `model(x)`."""
        return model(x)

    def activations(self, model: "LinenModel", run: Any) -> dict[str, Any]:
        """Returns the outputs of all modules during `run(model)`, and the values that they sow."""
        model.captured = []
        run(model)
        found: dict[str, Any] = {}
        for number, calls in enumerate(model.captured):
            found |= {path if number == 0 else f"{path}_call_{number + 1}": x for path, x in by_call(calls).items()}
        return found


class LinenModel:
    """A Linen module bound to its variables: the model that a loss function receives and `fit` returns.

    Attributes:
        module: the Linen module.
        params: its parameters.
        state: its other collections; calls in training update them.
        streams: the names of its random streams.
    """

    def __init__(
        self,
        module: Any,
        params: Any,
        state: Any,
        *,
        streams: Sequence[str] = (),
        train: bool = False,
        key: Any = None,
        warned: set[str] | None = None,
    ) -> None:
        self.module = module
        self.params = params
        self.state = dict(state)
        self.streams = streams
        self._train = train
        self._key = key
        self._calls = 0
        self._warned = set[str]() if warned is None else warned
        self.captured: list[Any] | None = None  # if a list: collects the outputs of modules, one tree per call

    @property
    def variables(self) -> dict[str, Any]:
        """All collections, as `module.apply` takes them."""
        return {"params": self.params, **self.state}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Applies the module; see `apply`."""
        return self.apply(*args, **kwargs)

    def apply(
        self,
        *args: Any,
        method: Any = None,
        rngs: Mapping[str, Any] | None = None,
        mutable: str | Sequence[str] = (),
        **kwargs: Any,
    ) -> Any:
        """Applies the module, or one of its methods.

        Args:
            *args: its arguments.
            method: the name of a method, or a function of the module.
            rngs: keys by stream, instead of those of the step. Draws from them are intended and cause no warning.
            mutable: further collections to return, such as `"intermediates"`.
            **kwargs: its keyword arguments. `train`, `training`, `is_training` or `deterministic`
                is set by the run unless it is among them.

        Returns:
            The module's result; with `mutable`, a pair of the result and the collections, as in Linen.

        Warns:
            UserWarning: once for each stream, if the module draws from it in evaluation as in training: for example
                dropout whose mode is a field of the module. Draws of a module without such a mode are assumed to be
                intended, as in a variational model with a stream of its own.
        """
        requested = (mutable,) if isinstance(mutable, str) else tuple(mutable)
        added, given = _train_arguments(self.module, method, args, kwargs, train=self._train)
        kwargs = {**kwargs, **added}
        training = self._train or any(given.get(name) is value for name, value in _TRAIN_ARGUMENTS.items())
        capture = self.captured is not None
        watched = (_CAPTURED,) if capture else ()
        collections = list(dict.fromkeys((*(self.state if training else ()), *requested, *watched)))
        watched_draws = contextlib.nullcontext() if training or rngs is not None else self._watching_draws()
        try:
            with watched_draws:
                result = self.module.apply(
                    self.variables,
                    *args,
                    rngs=self._keys() if rngs is None else dict(rngs),
                    method=method,
                    mutable=collections or False,
                    **({"capture_intermediates": True} if capture else {}),
                    **kwargs,
                )
        except Exception as error:
            if type(error).__name__ == "ModifyScopeVariableError" and not training:
                error.add_note(
                    f"jaxcb: {type(self.module).__name__} changes its variables in evaluation, as in training. "
                    f"{_CURE.format(example='nn.BatchNorm(use_running_average=not train)(x)')}"
                )
            if type(error).__name__ == "InvalidRngError":
                error.add_note(
                    f"jaxcb: this model has keys for the streams {self.streams} (none outside of a run). "
                    "Name the streams that the module uses: jc.linen(module, x, rngs=('dropout', 'noise'))."
                )
            raise
        if not collections:
            return result
        result, new = result[0], _plain(result[1])
        if self.captured is not None:
            self.captured.append(new.get(_CAPTURED, {}))
        if self._train:  # the evaluation view never changes, even if a call enables dropout
            self.state = {name: new.get(name, old) for name, old in self.state.items()}
        return (result, {name: new[name] for name in requested if name in new}) if requested else result

    @contextlib.contextmanager
    def _watching_draws(self) -> Iterator[None]:
        """Warns about streams that modules draw from within the context, although none should be in training mode."""
        drawn: dict[str, Any] = {}

        def note(next_method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = next_method(*args, **kwargs)
            # Linen counts the keys that each module has drawn from each stream
            for stream, count in getattr(context.module.scope, "rng_counters", {}).items():
                if isinstance(stream, str) and count and _is_training(context.module, stream):
                    drawn.setdefault(stream, context.module)
            return result

        linen = sys.modules.get("flax.linen")
        if linen is None or not isinstance(self.module, linen.Module):
            yield
            return
        with linen.intercept_methods(note):
            yield
        for stream, module in drawn.items():
            if stream not in self._warned:
                self._warned.add(stream)
                warnings.warn(self._told(stream, module), UserWarning, stacklevel=4)

    def _told(self, stream: str, module: Any) -> str:
        name = type(module).__name__
        at = "/".join(module.path)
        where = f"{name} at {at}" if at else name
        dropout = "dropout is active there and " if "drop" in f"{stream} {name}".lower() else ""
        return (
            f"jaxcb: {type(self.module).__name__} draws random numbers from the stream {stream!r} in evaluation (in "
            f"{where}), as in training, so that {dropout}its values are random. "
            f"{_CURE.format(example='nn.Dropout(0.5, deterministic=not train)(x)')} If the draws are intended, pass "
            f"your own keys: model.apply(x, rngs={{{stream!r}: key}})."
        )

    def _keys(self) -> dict[str, Any] | None:
        if self._key is None:
            return None
        key = jax.random.fold_in(self._key, self._calls)
        self._calls += 1
        # Folding in the name, not the index, keeps the keys of other streams when a stream is added.
        return {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in self.streams}


def _is_training(module: Any, stream: str) -> bool:
    """Returns whether a module drew from a stream because it is in training mode.

    The names of the stream, the module and its attributes decide; a module without a mode, such as a variational one,
    always draws.
    """
    if "drop" in stream.lower() or "drop" in type(module).__name__.lower():
        return True
    while hasattr(module, "parent"):  # the parent of the top module is not a module
        if any(getattr(module, name, None) is value for name, value in _TRAIN_ARGUMENTS.items()):
            return True
        module = module.parent
    return False


def _train_arguments(
    module: Any, method: Any, args: Any, kwargs: Any, *, train: bool
) -> tuple[dict[str, bool], dict[str, Any]]:
    """Returns the training argument to add to the call, and the arguments that the call has already."""
    function, lead = (module if method is None else method), ()
    if isinstance(method, str):
        function = getattr(module, method)
    elif method is not None and not hasattr(method, "__self__"):
        lead = (module,)
    try:
        signature = inspect.signature(function)
        given = signature.bind_partial(*lead, *args, **kwargs).arguments
    except (TypeError, ValueError):  # the call itself gives a better error message
        return {}, dict(kwargs)
    # Linen's merge_param rejects an argument that is also an attribute.
    names = [
        n for n in _TRAIN_ARGUMENTS if n in signature.parameters and n not in given and getattr(module, n, None) is None
    ]
    return {n: _TRAIN_ARGUMENTS[n] == train for n in names}, given


def _growing(adapter: Linen, inputs: Any, kwargs: Any) -> set[str]:
    """Returns the collections that grow with each call, such as sown values; these must not be kept."""
    params, model_state, _ = adapter.split()

    def call(params: Any, model_state: Any) -> Any:
        model = adapter.merge(params, model_state, None, train=True, key=jax.random.key(0))
        given = {k: v for k, v in kwargs.items() if k not in _TRAIN_ARGUMENTS}
        model(*inputs, **given)
        return model.state

    if not model_state:
        return set()
    try:
        new = jax.eval_shape(call, params, model_state)
    except Exception:  # a module that cannot train on its sample input fails later, when it trains
        return set()
    return {n for n in model_state if jax.tree.structure(new[n]) != jax.tree.structure(model_state[n])}


def _plain(tree: Any) -> Any:
    """Replaces Flax's frozen dicts by dicts."""
    return {k: _plain(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree
