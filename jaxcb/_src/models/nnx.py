"""Adapter of Flax NNX modules: split once into plain dicts, rebuilt with new Variables inside each trace."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxcb._src.models.adapter import avals, by_call, check_trainable, is_arrays
from jaxcb._src.utils.names import leaf_name
from jaxcb._src.utils.pytree import cast_like, to_strong_type

_PARAMS, _MODEL_STATE, _RNGS = range(3)
_MODES = ("deterministic", "use_running_average")

_pure: Any = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure  # its name before Flax 0.12.7


class NNX:
    """Adapter of a Flax NNX module.

    `params` are its `nnx.Param` Variables, `rngs` its keys and counters (`nnx.RngState`), `model_state`
    all other Variables and arrays. Each is a plain nested dict by attribute name, as `nnx.to_pure_dict`
    returns it. Sown values (`nnx.Intermediate`) are dropped.

    The evaluation view is the module after `.eval()`. The training view is the module after `.train()`,
    but a module that is partly in training mode keeps its modes, so that a batch norm
    that the user froze stays frozen. Only `deliver` changes the caller's own module.

    `variable_types` has the type of the Variable of each parameter, by path.

    Args:
        model: the module.
        copy: whether `deliver` makes a new module; otherwise it writes into the caller's.
        wrt: a filter of the Variables to train, as in `nnx.Optimizer`.

    Raises:
        TypeError: if a trained Variable holds integers, or a Variable is a reference.
        ValueError: if there is nothing to train.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxcb._src.models.nnx import NNX
        >>> adapter = NNX(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> params, model_state, rngs = adapter.split()
        >>> jax.tree.map(jnp.shape, params)
        {'bias': (3,), 'kernel': (2, 3)}
        >>> adapter.merge(params, model_state, rngs, train=True)(jnp.ones((4, 2))).shape
        (4, 3)
    """

    explicit_state = False

    def __init__(self, model: Any, *, copy: bool = False, wrt: Any = nnx.Param) -> None:
        self.model = model
        self.copy = copy
        self.in_place = not copy
        self._given, self._train, self._eval, leaves = _views(model)
        is_param = nnx.filterlib.to_predicate(wrt)
        self.variable_types: dict[str, type] = {}
        # For each leaf of the graph, in order: the part that holds it (or None), its path, and the value of a constant.
        self._slots: list[tuple[int | None, tuple[Any, ...], Any]] = []
        for path, leaf in leaves:
            if isinstance(leaf, nnx.Variable) and leaf.get_metadata().get("ref"):
                raise TypeError(
                    f"the Variable {_name(path)} of {type(model).__name__} is a reference (ref=True), which cannot be "
                    "carried through a compiled loop. Make the module without nnx.var_defaults(ref=True)."
                )
            value = _value(leaf)
            if not is_arrays(value):
                self._slots.append((None, path, value))
            elif isinstance(leaf, nnx.RngState):
                self._slots.append((_RNGS, path, None))
            elif is_param(path, leaf):
                self._slots.append((_PARAMS, path, None))
                # a Variable of several arrays is a parameter for each
                for inner, _ in jax.tree_util.tree_leaves_with_path(value):
                    self.variable_types["/".join(filter(None, (_name(path), leaf_name(inner))))] = type(leaf)
            else:
                self._slots.append((_MODEL_STATE, path, None))
        parts = self.split()
        check_trainable(
            parts[_PARAMS],
            of=f"the NNX module {type(model).__name__}",
            elsewhere="Make it another kind of nnx.Variable than nnx.Param; then it is kept and not trained.",
        )
        self._form = avals(parts)
        self._partitions = {path: nnx.spmd.get_var_pspec(leaf) for path, leaf in leaves if _is_split(leaf)}

    def partitions(self) -> dict[Any, Any]:
        """Returns path -> `PartitionSpec`, for Variables whose metadata names mesh axes (`nnx.with_partitioning`)."""
        return {tuple(jax.tree_util.DictKey(part) for part in path): spec for path, spec in self._partitions.items()}

    @property
    def form(self) -> Any:
        """The graphs of its views, and the constants among its leaves."""
        return self._given, self._train, self._eval, self._slots

    def program_key(self) -> Any:
        """Returns what decides its programs; see `key_of`."""
        return self.form

    def split(self) -> tuple[Any, Any, Any]:
        """Returns the current `(params, model_state, rngs)` of the caller's module."""
        params, model_state, rngs = self._parts(self.model)
        return params, model_state, rngs

    def release(self) -> None:
        """Does nothing: the module belongs to the caller."""

    def merge(self, params: Any, model_state: Any, rngs: Any, *, train: bool, key: Any = None) -> Any:
        """Returns the module in its training or evaluation view; it has its own keys, so `key` is unused."""
        return self._build(self._train if train else self._eval, (params, model_state, rngs))

    def carried(self, model: Any) -> tuple[Any, Any]:
        """Returns the statistics and the rng counters of `model` after the forward pass."""
        _, model_state, rngs = self._parts(model)
        return (
            cast_like(model_state, self._form[_MODEL_STATE], "the Variables after a forward pass: ", error=ValueError),
            cast_like(rngs, self._form[_RNGS], "the rng state after a forward pass: ", error=ValueError),
        )

    def deliver(self, params: Any, model_state: Any, rngs: Any) -> Any:
        """Updates the caller's module and returns it; returns a new module with `copy=True`."""
        if self.copy:
            return self._build(self._given, (params, model_state, rngs))
        write(self.model, params, model_state, rngs)
        return self.model

    def call(self, model: Any, x: Any, model_state: Any = None) -> Any:
        """Returns `model(x)`."""
        return model(x)

    def activations(self, model: Any, run: Any) -> dict[str, Any]:
        """Returns the outputs of all modules during `run(model)`, and the values that they sow."""
        _, found = nnx.capture(run, nnx.Intermediate, method_outputs=nnx.Intermediate)(model)
        return by_call(_plain(_pure(found)))

    def _build(self, graphdef: Any, parts: tuple[Any, Any, Any]) -> Any:
        leaves = [value if part is None else _at(parts[part], path) for part, path, value in self._slots]
        # Given plain arrays, merge makes new Variables, which belong to the current trace.
        return nnx.merge(graphdef, leaves)

    def _parts(self, model: Any) -> list[dict[Any, Any]]:
        found = dict(_leaves(model))
        parts: list[dict[Any, Any]] = [{}, {}, {}]
        for part, path, _ in self._slots:
            if part is None:
                continue
            if path not in found:
                raise ValueError(
                    f"the Variable {_name(path)} was removed from {type(model).__name__}. The set of Variables must "
                    "stay the same from step to step."
                )
            _put(parts[part], path, jax.tree.map(to_strong_type, _value(found[path])))
        return parts


def write(model: Any, params: Any, model_state: Any, rngs: Any) -> None:
    """Writes arrays into the Variables of a module, in place.

    Args:
        model: an `nnx.Module`.
        params: a nested dict by attribute name, as `NNX.split` returns it.
        model_state: the other Variables, likewise.
        rngs: keys and counters, likewise.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxcb._src.models.nnx import write
        >>> layer = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> write(layer, {"bias": jnp.ones(1), "kernel": jnp.zeros((1, 1))}, {}, {})
        >>> float(layer(jnp.ones(1))[0])
        1.0
    """
    for part in (params, model_state, rngs):
        if part:
            nnx.update(model, part)


def read_optimizer(optimizer: Any) -> tuple[Any, Array]:
    """Returns the state of an `nnx.Optimizer` as optax's state for plain dicts, and its step.

    Args:
        optimizer: an `nnx.Optimizer`.

    Returns:
        The optax state, and the number of updates done, int32 ().

    Example:
        >>> import optax
        >>> from flax import nnx
        >>> from jaxcb._src.models.nnx import read_optimizer
        >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        >>> opt_state, step = read_optimizer(nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param))
        >>> sorted(opt_state[0].trace), int(step)
        (['bias', 'kernel'], 0)
    """
    return _plain(_pure(optimizer.opt_state)), jnp.asarray(optimizer.step.get_raw_value(), jnp.int32)


def write_optimizer(optimizer: Any, opt_state: Any, step: Any) -> None:
    """Writes an optax state and a step into an `nnx.Optimizer`, in place; the inverse of `read_optimizer`.

    Args:
        optimizer: an `nnx.Optimizer`.
        opt_state: with the structure that `read_optimizer` returned.
        step: the number of updates done.

    Raises:
        ValueError: if the state is that of another optimizer.
    """
    variables = jax.tree.leaves(optimizer.opt_state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    if jax.tree.structure(_plain(_pure(optimizer.opt_state))) != jax.tree.structure(opt_state):
        raise ValueError(
            "the optimizer state has another structure than the nnx.Optimizer to write it into. Pass the optimizer "
            "that TrainState.from_nnx was given, or one made in the same way."
        )
    for variable, leaf in zip(variables, jax.tree.leaves(opt_state), strict=True):
        variable.set_raw_value(leaf)
    optimizer.step.set_raw_value(jnp.asarray(step, optimizer.step.get_raw_value().dtype))


def _views(model: Any) -> tuple[Any, Any, Any, list[tuple[Any, Any]]]:
    """Returns the graphs of the model as given, in training and in evaluation, and the leaves; changes no mode."""
    twin = nnx.clone(model, graph=True)
    nnx.pop(twin, nnx.Intermediate)
    given = nnx.graphdef(twin, graph=True)
    modes = [(m, name, getattr(m, name)) for _, m in nnx.iter_modules(twin) for name in _MODES if hasattr(m, name)]
    twin.train()
    if any(value is False for _, _, value in modes):
        for module, name, value in modes:
            if value is True:
                setattr(module, name, True)
    train = nnx.graphdef(twin, graph=True)
    twin.eval()
    return given, train, nnx.graphdef(twin, graph=True), _leaves(twin)


def _leaves(model: Any) -> list[tuple[Any, Any]]:
    """Returns paths and Variables (or arrays that are attributes), in the order of the graph."""
    return list(nnx.to_flat_state(nnx.state(model, graph=True)))


def _is_split(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable) and bool(leaf.get_metadata().get("out_sharding"))


def _value(leaf: Any) -> Any:
    return leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def _put(tree: dict[Any, Any], path: tuple[Any, ...], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _plain(tree: Any) -> Any:
    """Replaces `nnx.State` by dicts, at any depth."""

    def node(x: Any) -> Any:
        return {k: _plain(v) for k, v in x.raw_mapping.items()} if isinstance(x, nnx.State) else x

    return jax.tree.map(node, tree, is_leaf=lambda x: isinstance(x, nnx.State))
