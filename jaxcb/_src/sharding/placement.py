"""`Placement`: shardings of the arrays of a run."""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcb._src.sharding.arrays import automatic, put, put_part
from jaxcb._src.sharding.specs import axes_of, declared, specs_of
from jaxcb._src.utils.errors import DataError

_BATCH = ("data", "batch", "fsdp")  # mesh axes that a batch is sharded over, by their common names
_WORDS = ("fsdp", "replicated")


@dataclass(frozen=True)
class Placement:
    """Shardings of the arrays of a run. On one device every method returns its argument.

    Inside programs nothing is transferred explicitly: batch and train state get sharding constraints, and XLA's
    partitioner does the rest.

    Attributes:
        mesh: the devices; None for JAX's default device.
        sharding: of the train state, as in `specs_of`.
        batch: mesh axes that a batch is sharded over; none for replicated batches.
    """

    mesh: Mesh | None = None
    sharding: Any = field(default=None, hash=False)
    batch: tuple[str, ...] = ()

    @classmethod
    def of(cls, mesh: Mesh | None, sharding: Any, train: Any) -> "Placement":
        """Returns the placement for the user's arguments.

        A batch is sharded over the axes called "data", "batch" or "fsdp". If the mesh has none of them, it is sharded
        over the axes that no parameter is sharded over; if there are none, over all axes.

        Args:
            mesh: the devices. Its axes become automatic, also explicit ones.
            sharding: None, "replicated", "fsdp", or rules: pattern of paths -> `PartitionSpec`.
            train: the train state, or its shapes.

        Raises:
            ValueError: for an invalid sharding.
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
        placement.shardings(train)  # raises an error for specs that do not fit
        return placement

    @classmethod
    def devices(cls, mesh: Mesh | None) -> "Placement":
        """Returns a placement with devices for members of a population, with replicated batches."""
        return ONE_DEVICE if mesh is None else cls(automatic(mesh))

    # Shardings

    @property
    def parts(self) -> int:
        """Number of shards of a batch."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[name] for name in self.batch)

    @property
    def everywhere(self) -> NamedSharding | None:
        """Replicated; None for the default device."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def batch_sharding(self, axis: int) -> NamedSharding:
        """Returns the sharding of a batch along one axis of an array."""
        assert self.mesh is not None
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, self.batch or None))

    def shardings(self, train: Any) -> Any:
        """Returns the sharding of each leaf of a train state."""
        mesh = self.mesh
        assert mesh is not None
        over = ("fsdp",) if "fsdp" in mesh.axis_names else self.batch
        specs = specs_of(train, mesh, self.sharding, over)
        return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))

    def layout_text(self) -> str:
        """Returns a description that is equal on each process. Runs with equal descriptions resume bit for bit."""
        if self.mesh is None:
            return "one device"
        axes = ", ".join(f"{name}={size}" for name, size in self.mesh.shape.items())
        how = self.sharding
        if isinstance(how, Mapping):
            how = "{" + ", ".join(f"{pattern}: {spec}" for pattern, spec in how.items()) + "}"
        return f"mesh {axes}; state {how or 'by its own metadata'}; batch over {', '.join(self.batch)}"

    def shapes(self, tree: Any) -> Any:
        """Returns the shapes of arrays with a sharding, as programs see them.

        JAX would trace a function again for arrays with a mesh.
        """
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.everywhere), tree)

    # Transfers

    def put_everywhere(self, tree: Any) -> Any:
        """Replicates arrays."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda x: put(x, sharding), tree)

    def put_rows(self, tree: Any) -> Any:
        """Shards arrays that each process has completely, along their first axis over all devices."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        return jax.tree.map(lambda x: put(x, sharding), tree)

    def put_state(self, train: Any) -> Any:
        """Shards a train state."""
        return train if self.mesh is None else jax.tree.map(put, train, self.shardings(train))

    def carry_shardings(self, carry: Any) -> Any:
        """Returns the sharding of each leaf of a loop state: its train state is sharded, the rest is replicated."""
        return jax.tree.map(lambda _: self.everywhere, carry).replace(train=self.shardings(carry.train))

    def put_batch(self, tree: Any, *, axis: int = 0) -> Any:
        """Transfers batches to the devices, from each process its own part of the rows.

        Args:
            tree: arrays of the host.
            axis: the axis of the rows; 1 for a stack of batches.

        Raises:
            DataError: with several processes, for a batch that does not divide over the devices.
        """
        if self.mesh is None:
            return jax.device_put(jax.tree.map(self._host_array_if_elsewhere, tree))
        rows = jax.tree.leaves(tree)[0].shape[axis]
        if self.divides(rows * self.processes):
            return jax.tree.map(lambda x: put_part(x, self.batch_sharding(axis)), tree)
        if self.processes > 1:
            raise DataError(
                f"a smaller batch of {rows} rows a process does not divide over the devices, and no process has all "
                "rows. Pass Execution(drop_remainder=True)."
            )
        return self.put_everywhere(tree)

    def _host_array_if_elsewhere(self, x: Any) -> Any:
        """Returns an array of the host for one on other devices, since a loader may put its batches anywhere."""
        if not isinstance(x, jax.Array) or not x.committed or x.sharding.device_set == set(self.own_devices):
            return x
        return np.asarray(x)

    @property
    def processes(self) -> int:
        """Number of processes that provide different rows of a batch."""
        if self.mesh is None:
            return 1
        local = self.mesh.local_mesh.shape
        return self.parts // math.prod(local[name] for name in self.batch)

    @property
    def share(self) -> tuple[int, int]:
        """Index of the part of a batch that this process provides, and the number of parts."""
        count = self.processes
        if count == 1:
            return 0, 1
        indices = self.batch_sharding(0).addressable_devices_indices_map((self.parts,)).values()
        first = min(index[0].start or 0 for index in indices if index is not None)
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
    def all_devices(self) -> list[Any]:
        """The devices of all processes."""
        return self.own_devices if self.mesh is None else list(self.mesh.devices.flat)

    @property
    def devices_key(self) -> Any:
        """The devices, as part of the key of a compiled program."""
        return self.own_devices[0] if self.mesh is None else self.mesh

    @property
    def platform(self) -> str:
        """Platform of the devices, such as "cpu"."""
        return self.own_devices[0].platform

    def check_batch(self, rows: int) -> None:
        """Checks that a batch divides over the devices.

        Raises:
            DataError: with batch sizes that would.
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
        """Returns whether a batch of this size can be sharded."""
        return rows % self.parts == 0

    def instead_of_a_set_mesh(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which the axes of a mesh that the caller has set are automatic, as those of a run.

        `jax.set_mesh` may have set explicit ones. The mesh of the placement replaces it, if there is one.
        """
        if jax.sharding.get_abstract_mesh().empty:
            return contextlib.nullcontext()
        return jax.set_mesh(self.mesh or automatic(jax.sharding.get_mesh()))

    # Inside a program

    def with_mesh(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function in which a bare `PartitionSpec` can name the axes of the mesh."""
        if self.mesh is None:
            return fn
        mesh = self.mesh.abstract_mesh

        @functools.wraps(fn, updated=())
        def run(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(mesh):
                return fn(*args)

        return run

    def split(self, batch: Any) -> Any:
        """Constrains a batch to be sharded; to be replicated if it does not divide, with the same results. Traced."""
        if self.mesh is None or batch is None:
            return batch
        rows = jax.tree.leaves(batch)[0].shape[0]
        return jax.lax.with_sharding_constraint(
            batch, self.batch_sharding(0) if self.divides(rows) else self.everywhere
        )

    def constrain_state(self, train: Any) -> Any:
        """Constrains a train state to its shardings, so that these do not change from step to step. Traced."""
        if self.mesh is None:
            return train
        # frozen parameters are arguments, which have their shardings
        shardings, bare = self.shardings(train).replace(frozen=None), train.replace(frozen=None)
        return jax.lax.with_sharding_constraint(bare, shardings).replace(frozen=train.frozen)

    # Around a program

    def jit_out_shardings(self, leaves: list[Any]) -> dict[str, Any]:
        """Returns arguments of `jax.jit` that keep the shardings of the leaves.

        Args:
            leaves: of a `fn(leaves, ...) -> (leaves, outputs)`.
        """
        return {} if self.mesh is None else {"out_shardings": ([x.sharding for x in leaves], self.everywhere)}

    def block_if_needed(self, out: Any) -> Any:
        """Waits for a dispatch if another one could deadlock with it.

        XLA's CPU backend uses a thread of one shared pool for each device that waits in a collective. Two concurrent
        dispatches with collectives can use up the pool; a single one always completes.
        """
        if self.mesh is not None and self._shares_threads:
            jax.block_until_ready(out)
        return out

    @property
    def _shares_threads(self) -> bool:
        local = self.mesh.local_devices if self.mesh is not None else ()
        return len(local) > 1 and self.platform == "cpu"


ONE_DEVICE = Placement()
