"""`load`: weights and train states from checkpoints that callbacks saved."""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcb._src.models.adapt import adapt
from jaxcb._src.models.adapter import Adapter
from jaxcb._src.models.linen import LinenModel
from jaxcb._src.models.pytree import is_equinox
from jaxcb._src.storage import exports as _exports
from jaxcb._src.storage import orbax as _orbax
from jaxcb._src.storage.buckets.download import downloaded
from jaxcb._src.storage.fingerprint import frozen_facts, named
from jaxcb._src.training.learning_rate import with_constant_rates_of
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.errors import check_choice
from jaxcb._src.utils.local_path import local_path_or_address

Parts = tuple[str, ...]  # path of a leaf, such as ("params", "dense", "kernel")

_SHOWN = 12  # leaves that an error lists
_MODEL = ("params", "model_state")
_NO_STATE = (
    'It was saved with save_weights_only=True. what="model" loads params and model state, and keeps the rest of the '
    "target."
)
_MARKS = ("orbax.checkpoint", "_CHECKPOINT_METADATA", "_METADATA")  # every Orbax checkpoint contains one of these files


def load(path: Any, target: Any = None, *, what: str | None = None) -> Any:
    """Loads a checkpoint that `ModelCheckpoint`, the action `Checkpoint` or Orbax itself saved.

    With a target, names, shapes and dtypes of all leaves are compared before any array is read; differences are an
    error, and nothing is cast. Without a target, the structure of the checkpoint is returned as nested dicts and lists,
    on the default device.

    A checkpoint of a run with `trainable=` contains the trained parameters alone. The others are taken from the target,
    which must have the values that the run had: a hash of them is compared.

    Args:
        path: its directory, or its address in a bucket, such as `s3://bucket/run/exports/01`.
        target: what to load into. A model (a Flax NNX module, which is modified in place, `jc.linen(...)`, an Equinox
            module, the model of an earlier run); a `TrainState`; or a pytree of arrays or `jax.ShapeDtypeStruct`:
            parameters, or a dict of `params` and `model_state`. Each leaf is placed by the sharding of the target's
            leaf, by default on the default device. None for no target.
        what: "params", "model" (params and model state) or "state" (the complete train state). By default parameters
            for a pytree of them, the model for a model, the state for a `TrainState`, and everything without a target.

    Returns:
        The target with the checkpoint's values; the target's own arrays are not modified. A `TrainState` keeps the
            parts that were not requested, and its named weights if the checkpoint contains none of their name.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: for a directory that is not an Orbax checkpoint or is damaged, if it does not contain what was
            requested, and for leaves with other names, shapes or dtypes.
        TypeError: for an invalid path or target.
        OSError: for a bucket that does not exist, does not answer or denies.
        ImportError: for an address without obstore (`pip install jaxcb[bucket]`).

    Example:
        >>> import jax.numpy as jnp, tempfile, jaxcb as jc
        >>> state = jc.TrainState.create(params={"w": jnp.ones(2)})
        >>> save = jc.chain(jc.ModelCheckpoint("{epoch:02d}", save_weights_only=True))
        >>> with tempfile.TemporaryDirectory() as run_dir, jc.Recorder(run_dir, verbose=0) as recorder:
        ...     _, actions = save.on_epoch_end(save.init(), jc.Metrics({"loss": 0.5}))
        ...     recorder.perform(actions, state, step=1)
        ...     print(jc.load(f"{run_dir}/01", what="params"))
        {'w': Array([1., 1.], dtype=float32)}
    """
    check_choice("load", "what", what, (None, "params", "model", "state"))
    place = local_path_or_address("load", "path", path)
    if isinstance(place, Path):
        return _load(place, target, what)
    with downloaded(place, choose=_needed) as folder:
        try:
            return _load(folder, target, what)
        except (FileNotFoundError, ValueError) as error:  # they name the folder, which is removed
            text = str(error).replace(str(folder), str(place)).replace(str(folder.parent), str(place.parent))
            raise type(error)(text) from error


def _needed(names: list[str]) -> list[str]:
    """Returns the files to download: of a folder that is no checkpoint, which may be large, those that tell what is."""
    if any(mark in names for mark in _MARKS):
        return names
    return [name for name in names if name.rpartition("/")[2] in (*_MARKS, "manifest.json")]


def _load(path: Path, target: Any, what: str | None) -> Any:
    """Loads from a directory."""
    source = _open(path)
    if target is None:
        part = source.part(what)
        return _at(source.read({parts: None for parts in source.leaves if parts[: len(part)] == part}), part, what)
    return _load_into(source, target, what)


class _Source(NamedTuple):
    """An opened checkpoint whose arrays are not read yet."""

    path: Path
    holds: str | None  # "model" or "state"; None for a checkpoint of another library
    frozen: Mapping[str, Any] | None  # facts of the parameters that it does not contain, as of `frozen_facts`
    tree: Any  # its structure, with shape and dtype of each leaf
    leaves: dict[Parts, Any]

    def part(self, what: str | None) -> Parts:
        """Returns the path of a part.

        Raises:
            ValueError: if the checkpoint does not contain it.
        """
        held = {"state": ("params", "model", "state"), "model": ("params", "model"), None: ()}[self.holds]
        if what is not None and what not in held:
            raise ValueError(
                f"{self.path} has no {what!r}, but {', '.join(map(repr, held)) or 'a tree that jaxcb did not save'}. "
                f"{_NO_STATE if what == 'state' and self.holds else 'Leave what= out to load what is there.'}"
            )
        return ("params",) if what == "params" else ()

    def read(self, wanted: Mapping[Parts, Any]) -> Any:
        """Reads leaves, each with its sharding; None for the default device.

        Returns:
            The structure of the checkpoint, with an ellipsis for other leaves.
        """
        from orbax.checkpoint import v1 as ocp

        default = jnp.zeros(()).sharding

        def abstract(parts: Parts, leaf: Any) -> Any:
            if parts not in wanted:
                return ocp.PLACEHOLDER
            if not hasattr(leaf, "dtype"):  # a number or a string
                return leaf
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=wanted[parts] or default)

        try:
            return _orbax.load(str(self.path), _map(abstract, self.tree))
        except Exception as error:
            raise ValueError(f"{self.path} cannot be read, so it is damaged: {_first_line(error)}") from error


# Opening a checkpoint


def _open(path: Path) -> _Source:
    """Opens a checkpoint and reads its metadata."""
    _orbax.check_place(path)
    path = _complete(path)
    try:
        metadata = _orbax.metadata(str(path))
    except Exception as error:
        raise ValueError(f"{path} is a damaged or half-written checkpoint: {_first_line(error)}") from error
    facts = metadata.custom_metadata if isinstance(metadata.custom_metadata, Mapping) else {}
    holds = facts.get("what")
    leaves = dict(_flat(metadata.metadata))
    frozen = facts.get("frozen")
    return _Source(
        path,
        holds if holds in ("model", "state") else None,
        frozen if isinstance(frozen, Mapping) else None,
        metadata.metadata,
        leaves,
    )


def _complete(path: Path) -> Path:
    """Returns the directory of the complete checkpoint.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is not a complete Orbax checkpoint.
    """
    if not path.exists():
        new = _exports.complete(path)
        if new is not None:  # the process was killed between the two renames that replace a checkpoint
            return new
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        if any(name.startswith(f"{path.name}.") and ".orbax-checkpoint-tmp" in name for name in siblings):
            raise ValueError(f"the save of {path} was never finished, so there is nothing to load.")
        raise FileNotFoundError(f"there is no checkpoint at {path}.{_list_checkpoints(path.parent)}")
    if path.is_file():
        raise ValueError(f"{path} is a file, expected the directory of an Orbax checkpoint.")
    is_run = (path / "manifest.json").is_file()
    saves = ("step_*/manifest.json", "*/step_*/manifest.json")  # a run directory
    if is_run or (not _is_checkpoint(path) and any(any(path.glob(at)) for at in saves)):
        raise ValueError(
            f"{path} holds checkpoints of a run: fit(..., run_dir=, resume=True) resumes from them. What "
            f"ModelCheckpoint saves can be loaded.{'' if is_run else _list_checkpoints(path)}"
        )
    if not _is_checkpoint(path):
        raise ValueError(f"{path} is not an Orbax checkpoint, or an incomplete copy of one.{_list_checkpoints(path)}")
    if ".orbax-checkpoint-tmp" in path.name:
        raise ValueError(f"{path} is a save that was never finished.")
    return path


def _is_checkpoint(path: Path) -> bool:
    return any((path / mark).exists() for mark in _MARKS)  # `ocp.is_orbax_checkpoint` returns True for any directory


def _list_checkpoints(directory: Path) -> str:
    """Lists the checkpoints in a directory and in its subdirectories, for an error."""
    near = [path for path in directory.glob("*/") if not (path / "manifest.json").is_file()]
    far = [path for folder in near if not _is_checkpoint(folder) for path in folder.glob("*/")]
    found = sorted(str(path.relative_to(directory)) for path in near + far if _is_checkpoint(path))
    return f" Checkpoints in {directory}: {', '.join(found[:_SHOWN])}." if found else ""


# Loading into a target


def _load_into(source: _Source, target: Any, what: str | None) -> Any:
    """Loads into a target of any kind.

    A model comes before the pytrees, since some models are pytrees too. A pytree can be the parameters, both parts of a
    model, or (of another library's checkpoint) the complete tree.
    """
    if isinstance(target, TrainState):
        what = what or "state"
        source.part(what)
        frozen, target = target.frozen, target.replace(frozen=None)
        _check_frozen(source, frozen)
        if what == "state":
            new = _fill(source, target, (), within=None).replace(frozen=frozen)
            return new.replace(opt_state=with_constant_rates_of(new.opt_state, target.opt_state, target.tx))
        names = _MODEL if what == "model" else _MODEL[:1]
        new = _fill(source, {n: getattr(target, n) for n in names}, (), within=names)
        return target.replace(frozen=frozen, **new)
    adapter = _adapter_of(target)
    if adapter is not None:
        what = what or "model"
        if what == "state":
            raise ValueError(
                f"load: what='state' needs a TrainState to load into, got a {type(target).__name__}. Use "
                "result.state or TrainState.create(...)."
            )
        source.part(what)
        params, model_state, rngs = adapter.split()
        parts = {"params": params, "model_state": model_state}
        names = _MODEL if what == "model" else _MODEL[:1]
        new = parts | _fill(source, {n: parts[n] for n in names}, (), within=names, whole=True)
        return adapter.deliver(new["params"], new["model_state"], rngs)
    for parts, leaf in _named(target):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(
                f"load: the target's leaf {_name(parts)} is a {type(leaf).__name__}, expected an array or a "
                "jax.ShapeDtypeStruct. Targets are a model, a TrainState, or a pytree of arrays."
            )
    if source.holds is None:
        source.part(what)
        return _fill(source, target, (), within=None)
    if what is None:
        what = "model" if isinstance(target, Mapping) and set(target) == set(_MODEL) else "params"
    part = source.part(what)
    return _fill(source, target, part, within={"params": _MODEL[:1], "model": _MODEL}.get(what), whole=True)


def _adapter_of(target: Any) -> Adapter | None:
    """Returns the adapter of a model; None for a tree of arrays."""
    nnx = sys.modules.get("flax.nnx")
    is_model = (
        isinstance(target, LinenModel)
        or (nnx is not None and isinstance(target, nnx.Module))
        or is_equinox(target)
        or (isinstance(target, Adapter) and not isinstance(target, type))
    )
    return adapt(target) if is_model else None


def _fill(source: _Source, target: Any, under: Parts, *, within: tuple[str, ...] | None, whole: bool = False) -> Any:
    """Reads the leaves of a tree.

    Args:
        source: the checkpoint.
        target: a pytree.
        under: path of the target in the checkpoint.
        within: fields of the checkpoint that the target must match completely; None for all.
        whole: whether the target has the frozen parameters, which the checkpoint may lack. They stay as they are.

    Raises:
        ValueError: for leaves that differ.
    """
    wanted = {under + parts: leaf for parts, leaf in _named(target)}
    stored = {p: leaf for p, leaf in source.leaves.items() if within is None or p[0] in within}
    kept: dict[Parts, Any] = {}
    if isinstance(target, TrainState):  # named weights belong to callbacks, which may have changed
        stored = {p: leaf for p, leaf in stored.items() if p[0] != "weights" or p[:2] in {w[:2] for w in wanted}}
        slots = {p[:2] for p in stored if p[0] == "weights"}
        kept = {p: x for p, x in wanted.items() if p[0] == "weights" and p[:2] not in slots}
        wanted = {p: x for p, x in wanted.items() if p not in kept}
    # a leaf that the target lacks is another model, whose difference `_compare` lists
    if whole and source.frozen is not None and stored.keys() <= wanted.keys():
        frozen = {p: x for p, x in wanted.items() if p not in stored and (under or p)[0] == "params"}
        _check_frozen(source, {"/".join(p[1:]): x for p, x in frozen.items()})
        kept, wanted = kept | frozen, {p: x for p, x in wanted.items() if p not in frozen}
    _compare(source.path, stored, wanted)
    found = dict(_flat(source.read({p: getattr(leaf, "sharding", None) for p, leaf in wanted.items()})))
    values = {p: _as_key(found[p], leaf, p, source.path) for p, leaf in wanted.items()} | kept
    leaves = [values[under + parts] for parts, _ in _named(target)]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _check_frozen(source: _Source, frozen: Any) -> None:
    """Checks that the target has the frozen parameters that the checkpoint was saved with, and does not contain.

    Raises:
        ValueError: if it has others.
    """
    if source.frozen is None:
        if frozen is not None:
            raise ValueError(
                f"{source.path} was saved by a run that trained all parameters, and the target has frozen ones. Load "
                "it into a model, or into a TrainState that was made without trainable=."
            )
        return
    own = named(frozen)
    for name, leaf in own.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise ValueError(
                f"{source.path} contains the trained parameters alone, and the target has no array for {name}. Load it "
                "into the model that the run began with."
            )
    now = frozen_facts(own)
    known = {part: source.frozen.get(part) for part in now}
    if any(known[part] not in (None, now[part]) for part in now):
        raise ValueError(
            f"{source.path} contains the trained parameters alone. Its {known['arrays']} frozen arrays of "
            f"{known['parameters']} parameters had the hash {known['hash']}; the target has {now['arrays']} arrays of "
            f"{now['parameters']} parameters, with the hash {now['hash']}. Load it into the model that the run began "
            "with."
        )


def _compare(path: Path, stored: Mapping[Parts, Any], wanted: Mapping[Parts, Any]) -> None:
    """Checks for equal leaves, with equal shapes and dtypes."""
    lines = []
    for parts in sorted(stored.keys() | wanted.keys()):
        stored_text, wanted_text = _shown(stored.get(parts)), _shown(wanted.get(parts))
        if stored_text != wanted_text:
            lines.append(f"{_name(parts)}: {stored_text} in the checkpoint, {wanted_text} in the target")
    if lines:
        more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        listed = "\n  ".join(lines[:_SHOWN])
        raise ValueError(f"{path} does not match the target, and nothing was loaded:\n  {listed}{more}")


def _shown(leaf: Any) -> str:
    """Returns dtype and shape of a leaf as stored; those of its data for a PRNG key."""
    if leaf is None:
        return "nothing"
    if not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _as_key(found: Any, leaf: Any, parts: Parts, path: Path) -> Any:
    """Converts between a PRNG key and its data, to match the target."""
    if found.dtype == leaf.dtype:
        return found
    is_key = jnp.issubdtype(found.dtype, jax.dtypes.prng_key)
    if is_key and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{path} does not match the target: {_name(parts)} is {found.dtype} there, not {leaf.dtype}.")
    if is_key:
        return jax.random.key_data(found)
    return jax.random.wrap_key_data(found, impl=jax.random.key_impl(leaf))


# Trees by leaf names


def _flat(tree: Any, parts: Parts = ()) -> Iterator[tuple[Parts, Any]]:
    """Yields the leaves of nested dicts and lists with their paths."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, (*parts, str(key)))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _flat(value, (*parts, str(index)))
    elif tree is not None:
        yield parts, tree


def _map(function: Callable[[Parts, Any], Any], tree: Any, parts: Parts = ()) -> Any:
    """Applies `function(path, leaf)` to each leaf of nested dicts and lists."""
    if isinstance(tree, Mapping):
        return {key: _map(function, value, (*parts, str(key))) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map(function, value, (*parts, str(index))) for index, value in enumerate(tree))
    return None if tree is None else function(parts, tree)


def _named(tree: Any) -> list[tuple[Parts, Any]]:
    """Returns the leaves of any pytree with their paths."""
    return [
        (tuple(jax.tree_util.keystr((key,), simple=True) for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _at(tree: Any, part: Parts, what: str | None) -> Any:
    for key in part:
        tree = tree[key]
    return {name: tree[name] for name in _MODEL} if what == "model" else tree


def _name(parts: Parts) -> str:
    return "/".join(parts) or "the whole tree"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]
