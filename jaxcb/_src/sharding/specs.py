"""Partition specs of a train state: from rules, from the model's own metadata, or by size."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxcb._src.utils.names import check_pattern, leaf_name, matches

LEAST = 1 << 12  # a leaf with fewer elements is replicated: communication would cost more than the memory saved

Path = tuple[Any, ...]


def specs_of(train: Any, mesh: Mesh, sharding: Any, axes: tuple[str, ...]) -> Any:
    """Returns the partition spec of each leaf of a train state.

    Optimizer state and named weights are sharded like the parameter of the same path and shape. A leaf belongs to the
    parameter whose path is the longest suffix of its own path: optimizers nest the parameters' tree below paths of
    their own, in any depth.

    Args:
        train: the train state, or its shapes.
        mesh: the devices.
        sharding: None for the model's own metadata, "replicated", "fsdp", or rules: pattern of paths -> spec.
        axes: mesh axes for "fsdp".

    Returns:
        A tree of `PartitionSpec` with the structure of the train state.

    Raises:
        ValueError: for a rule that matches no parameter, or a spec that does not fit the mesh or a leaf.
    """
    shapes = _named(train)
    if isinstance(sharding, Mapping):
        known = _by_rules(shapes, sharding)
    elif sharding == "fsdp":
        known = {path: _by_size(leaf.shape, mesh, axes) for path, leaf in shapes.items()}
    elif sharding == "replicated":
        known = {}
    else:
        known = declared(train)
    for path, spec in known.items():
        _check(spec, shapes[path].shape, mesh, leaf_name(path))

    def spec_of(path: Path, leaf: Any) -> PartitionSpec:
        field = getattr(path[0], "name", None)
        if field not in ("params", "frozen", "model_state", "opt_state", "weights"):
            return PartitionSpec()
        for start in range(1, len(path) + 1):  # longest suffix first
            owner = path[start:]
            if owner in shapes and shapes[owner].shape == leaf.shape:
                return known.get(owner, PartitionSpec())
        # such as a factored statistic of Adafactor, which has the path of a parameter and another shape
        return _by_size(leaf.shape, mesh, axes) if sharding == "fsdp" else PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec_of, train)


def declared(train: Any) -> dict[Path, PartitionSpec]:
    """Returns the specs of parameters by path from Flax's partition metadata, as far as there is any."""
    found: dict[Path, PartitionSpec] = {}
    for part in (train.params, train.frozen, train.model_state):
        boxes = jax.tree_util.tree_leaves_with_path(part, is_leaf=lambda x: hasattr(x, "get_partition_spec"))
        for path, box in boxes:
            if hasattr(box, "get_partition_spec"):
                (inner, _), *_ = jax.tree_util.tree_leaves_with_path(box)
                found[(*path, *inner)] = _spec_of_box(box)
    partitions = getattr(train.adapter, "partitions", None)
    return found | ({} if partitions is None else partitions())


def _spec_of_box(box: Any) -> PartitionSpec:
    spec = box.get_partition_spec()
    if not hasattr(box, "rules"):
        return spec
    from flax.linen.spmd import logical_to_mesh_axes

    return logical_to_mesh_axes(tuple(spec), box.rules) or PartitionSpec()


def axes_of(spec: PartitionSpec) -> list[str]:
    """Returns the mesh axes in a spec."""
    return [name for entry in spec if entry is not None for name in ([entry] if isinstance(entry, str) else entry)]


def _named(train: Any) -> dict[Path, Any]:
    """Returns parameters and model state by path."""
    parts = (train.model_state, train.params, train.frozen)
    return {path: leaf for part in parts for path, leaf in jax.tree_util.tree_leaves_with_path(part)}


def _by_rules(shapes: Mapping[Path, Any], rules: Mapping[str, Any]) -> dict[Path, PartitionSpec]:
    """Returns the spec of the first rule that matches, for each parameter."""
    names = {path: leaf_name(path).removesuffix("/value") for path in shapes}  # Linen's boxes add this part to the path
    for pattern, spec in rules.items():
        check_pattern(pattern, names.values(), "sharding", "the rule ")
        if not isinstance(spec, PartitionSpec):
            raise TypeError(
                f"sharding: the rule {pattern!r} is a {type(spec).__name__}, expected a jax.sharding.PartitionSpec."
            )
    found = {}
    for path, name in names.items():
        spec = next((spec for pattern, spec in rules.items() if matches(pattern, name)), None)
        if spec is not None:
            found[path] = spec
    return found


def _by_size(shape: tuple[int, ...], mesh: Mesh, axes: tuple[str, ...]) -> PartitionSpec:
    """Returns a spec that shards the largest dimension that divides."""
    parts = math.prod(mesh.shape[name] for name in axes)
    if math.prod(shape) < LEAST:
        return PartitionSpec()
    fitting = [dim for dim, size in enumerate(shape) if size % parts == 0 and size]
    if not fitting:
        return PartitionSpec()
    best = max(fitting, key=shape.__getitem__)
    return PartitionSpec(*[None] * best, axes)


def _check(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh, name: str) -> None:
    """Checks that a spec fits the mesh and a leaf."""
    unknown = [axis for axis in axes_of(spec) if axis not in mesh.shape]
    if unknown:
        raise ValueError(
            f"sharding: {name} is sharded by {spec}, but the mesh has no axis {unknown[0]!r}. Its axes are "
            f"{_axes_words(mesh)}. Name one of these, or pass sharding='replicated'."
        )
    if len(spec) > len(shape):
        raise ValueError(f"sharding: {name} has the shape {shape}, which {spec} has too many entries for.")
    for dim, entry in enumerate(spec):
        parts = math.prod(mesh.shape[axis] for axis in axes_of(PartitionSpec(entry)))
        if shape[dim] % parts:
            raise ValueError(
                f"sharding: {name} has the shape {shape}, whose dimension {dim} does not divide into {parts} parts, as "
                f"{spec} asks for on a mesh of {_axes_words(mesh)}."
            )


def _axes_words(mesh: Mesh) -> str:
    return ", ".join(f"{name!r} ({size})" for name, size in mesh.shape.items())
