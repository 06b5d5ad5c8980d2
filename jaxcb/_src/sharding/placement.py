"""`Placement`: where the arrays of a run lie, known in one place."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcb._src.sharding.arrays import put, put_part
from jaxcb._src.sharding.specs import axes_of, declared, specs_of
from jaxcb._src.utils.errors import DataError
from jaxcb._src.utils.xla import fast_compile_options

_BATCH = ("data", "batch", "fsdp")  # axes of a mesh that a batch is split over, by their common names
_WORDS = ("fsdp", "replicated")


@dataclass(frozen=True)
class Placement:
    """Where the arrays of a run lie. On one device every method hands through what it is given.

    Inside programs nothing is moved by hand: the batch and the train state are constrained to where they belong, and
    XLA's partitioner does the rest.

    Attributes:
        mesh: the devices; None for JAX's default device.
        sharding: of the train state, as `specs_of` takes it.
        batch: axes of the mesh that a batch is split over, none for batches that are whole on each device.
    """

    mesh: Mesh | None = None
    sharding: Any = field(default=None, hash=False)
    batch: tuple[str, ...] = ()

    @classmethod
    def of(cls, mesh: Mesh | None, sharding: Any, train: Any) -> "Placement":
        """Makes the placement that a user asked for.

        A batch is split over the axes called "data", "batch" or "fsdp"; where the mesh has none of them, over those
        that no parameter is split over; where there are none, over all.

        Args:
            mesh: the devices. Its axes are left to the partitioner, also those that were made explicit.
            sharding: None, "replicated", "fsdp", or rules: pattern of paths -> `PartitionSpec`.
            train: the train state, or its shapes.

        Raises:
            ValueError: for what does not fit.
        """
        if mesh is None:
            if sharding is not None:
                raise ValueError(
                    f"sharding={sharding!r} was given without a mesh: pass mesh=jax.make_mesh((jax.device_count(),), "
                    "('data',)) too."
                )
            return ONE_DEVICE
        mesh = automatic(mesh)
        if not (sharding is None or isinstance(sharding, Mapping) or (sharding in _WORDS)):
            raise ValueError(
                f"sharding must be 'fsdp', 'replicated', a dict of path patterns to jax.sharding.PartitionSpec, or "
                f"None for the model's own partition metadata, got {sharding!r}."
            )
        named: set[str] = set()
        if sharding is None or isinstance(sharding, Mapping):
            specs = declared(train) if sharding is None else sharding
            named = {axis for spec in specs.values() for axis in axes_of(spec)}
        names = mesh.axis_names
        batch = tuple(n for n in names if n in _BATCH) or tuple(n for n in names if n not in named) or names
        placement = cls(mesh, sharding, batch)
        placement.shardings(train)  # refuses what does not fit
        return placement

    @classmethod
    def devices(cls, mesh: Mesh | None) -> "Placement":
        """Devices to spread arrays over that no batch is split over."""
        return ONE_DEVICE if mesh is None else cls(automatic(mesh))

    # What is where

    @property
    def parts(self) -> int:
        """Into how many parts a batch is split."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[name] for name in self.batch)

    @property
    def everywhere(self) -> NamedSharding | None:
        """Whole on each device; None for the default device."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def batch_sharding(self, axis: int) -> NamedSharding:
        """Split over the batch's axes along one axis of an array."""
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, self.batch or None))

    def shardings(self, train: Any) -> Any:
        """Where each leaf of a train state lies, as a tree of its form."""
        mesh = self.mesh
        assert mesh is not None
        over = ("fsdp",) if "fsdp" in mesh.axis_names else self.batch
        specs = specs_of(train, mesh, self.sharding, over)
        return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))

    def layout_text(self) -> str:
        """The layout in words that are the same in each process; checkpoints of equal layouts resume bit for bit."""
        if self.mesh is None:
            return "one device"
        axes = ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        how = self.sharding
        if isinstance(how, Mapping):
            how = "{" + ", ".join(f"{pattern}: {spec}" for pattern, spec in how.items()) + "}"
        return f"mesh {axes}; state {how or 'by its own metadata'}; batch over {', '.join(self.batch)}"

    def shapes(self, tree: Any) -> Any:
        """The shapes of arrays as programs see them: JAX traces a function anew for arrays that know of a mesh."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.everywhere), tree)

    # Moving arrays there

    def put_everywhere(self, tree: Any) -> Any:
        """Puts whole arrays on each device."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda x: put(x, sharding), tree)

    def put_rows(self, tree: Any) -> Any:
        """Splits arrays that each process holds whole over all devices, along their first axis."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        return jax.tree.map(lambda x: put(x, sharding), tree)

    def put_state(self, train: Any) -> Any:
        """Puts a train state where it belongs."""
        return train if self.mesh is None else jax.tree.map(put, train, self.shardings(train))

    def init_sharded(self, start: Callable[[Any], Any], train: Any) -> Any:
        """Runs `start(train)`, which makes a carry: the train state is made where it belongs, all else everywhere."""
        if self.mesh is None:
            return jax.jit(start, compiler_options=fast_compile_options(self.platform))(train)
        train = self.put_state(train)
        carry = jax.eval_shape(start, train)
        shardings = jax.tree.map(lambda _: self.everywhere, carry).replace(train=self.shardings(carry.train))
        return jax.jit(start, out_shardings=shardings, compiler_options=fast_compile_options(self.platform))(train)

    def put_batch(self, tree: Any, *, axis: int = 0) -> Any:
        """Puts batches on the devices, each process its own part of the rows.

        Args:
            tree: arrays of the host.
            axis: the axis of the rows; 1 for a stack of batches.
        """
        if self.mesh is None:
            return jax.device_put(tree)
        rows = jax.tree.leaves(tree)[0].shape[axis]
        if self.divides(rows * self.processes):
            return jax.tree.map(lambda x: put_part(x, self.batch_sharding(axis)), tree)
        if self.processes > 1:
            raise DataError(
                f"a smaller batch of {rows} rows a process does not divide over the devices, and no process has all of "
                "it. Pass Execution(drop_remainder=True)."
            )
        return self.put_everywhere(tree)

    @property
    def processes(self) -> int:
        """Processes that feed different rows of a batch."""
        if self.mesh is None:
            return 1
        local = self.mesh.local_mesh.shape
        return self.parts // math.prod(local[name] for name in self.batch)

    @property
    def share(self) -> tuple[int, int]:
        """Which part of a batch's rows this process feeds, and into how many parts processes feed it."""
        count = self.processes
        if count == 1:
            return 0, 1
        own = self.batch_sharding(0).addressable_devices_indices_map((self.parts,)).values()
        first = min(index[0].start or 0 for index in own if index is not None)
        return first * count // self.parts, count

    @property
    def own_devices(self) -> list[Any]:
        """The devices of this process."""
        if self.mesh is not None:
            return list(self.mesh.local_devices)
        config: Any = jax.config
        default = config.jax_default_device
        return [default if isinstance(default, jax.Device) else jax.local_devices()[0]]

    @property
    def platform(self) -> str:
        """What kind of devices they are."""
        return self.own_devices[0].platform

    def check_batch(self, rows: int) -> None:
        """Requires that a batch divides.

        Raises:
            DataError: with numbers that would.
        """
        if not self.divides(rows):
            assert self.mesh is not None
            parts = self.parts
            near = sorted({max(rows // parts, 1) * parts, -(-rows // parts) * parts})
            raise DataError(
                f"a batch of {rows} rows does not divide over {parts} devices (mesh axes {', '.join(self.batch)}). "
                f"Pass batch_size={' or '.join(map(str, near))}, with at least as many rows of data."
            )

    def divides(self, rows: int) -> bool:
        """Whether a batch of so many rows can be split."""
        return rows % self.parts == 0

    # Inside a program

    def with_mesh(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Lets a function of the user name the mesh's axes by a bare `PartitionSpec`."""
        if self.mesh is None:
            return fn
        mesh = self.mesh.abstract_mesh

        @functools.wraps(fn, updated=())
        def run(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh):
                return fn(*args)

        return run

    def split(self, batch: Any) -> Any:
        """Constrains a batch to be split; one that does not divide is whole on each device, and exact. Traced."""
        if self.mesh is None:
            return batch
        rows = jax.tree.leaves(batch)[0].shape[0]
        return jax.lax.with_sharding_constraint(
            batch, self.batch_sharding(0) if self.divides(rows) else self.everywhere
        )

    def constrain_state(self, train: Any) -> Any:
        """Constrains a train state to lie where it belongs, so that it keeps its layout from step to step. Traced."""
        return train if self.mesh is None else jax.lax.with_sharding_constraint(train, self.shardings(train))

    def whole(self, tree: Any) -> Any:
        """Constrains what is small, and the same for all, to be whole on each device. Traced."""
        return tree if self.mesh is None else jax.lax.with_sharding_constraint(tree, self.everywhere)

    # Around a program

    def jit_out_shardings(self, leaves: list[Any]) -> dict[str, Any]:
        """Arguments of `jax.jit` for a `fn(leaves, ...) -> (leaves, what the host reads)` that keeps their layout."""
        return {} if self.mesh is None else {"out_shardings": ([x.sharding for x in leaves], self.everywhere)}

    def block_if_needed(self, out: Any) -> Any:
        """Waits for a dispatch where another behind it could block it for ever.

        XLA's CPU backend needs a thread for each device that waits in a collective, and takes them from one pool: two
        dispatches that hold collectives can have all of it between them. One at a time always ends.
        """
        if self.mesh is not None and self._shares_threads:
            jax.block_until_ready(out)
        return out

    @property
    def _shares_threads(self) -> bool:
        local = self.mesh.local_devices if self.mesh is not None else ()
        return len(local) > 1 and self.platform == "cpu"


def automatic(mesh: Mesh) -> Mesh:
    """The same devices with axes that are left to XLA's partitioner; `jax.make_mesh` may make explicit ones."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, such as jax.make_mesh makes, got a {type(mesh).__name__}.")
    return Mesh(np.asarray(mesh.devices), mesh.axis_names)


ONE_DEVICE = Placement()
