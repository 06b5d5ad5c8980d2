"""The devices that programs are compiled for, on a machine that has none of them."""

import contextlib
import functools
import importlib
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

HERE = Path(__file__).parent
LARGE = 4096  # elements of an array that is split, and whose copies count
PACKAGES = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda12"}


@dataclass(frozen=True)
class Target:
    """Devices of one kind.

    Attributes:
        name: as the table shows it.
        platform: "tpu" or "cuda".
        chips: number of devices.
        sharding: of the train state over several devices; None for one.
    """

    name: str
    platform: str
    chips: int = 1
    sharding: str | None = None

    @property
    def backend(self) -> str:
        """The platform of these devices, as JAX names it."""
        return "gpu" if self.platform == "cuda" else self.platform

    @functools.cached_property
    def devices(self) -> list[Any]:
        """The devices: they can be compiled for, and run nothing."""
        return _topology(self.platform, self.chips)[: self.chips]

    @functools.cached_property
    def mesh(self) -> Mesh | None:
        """The devices as a mesh; None for one device."""
        return None if self.chips == 1 else Mesh(np.asarray(self.devices), ("data",))

    def place(self, tree: Any) -> Any:
        """Returns shapes on this target: on its device, or with the sharding on its mesh that a leaf has."""
        single = SingleDeviceSharding(self.devices[0])

        def place(x: Any) -> Any:
            sharding = single if self.mesh is None else x.sharding
            return jax.ShapeDtypeStruct(np.shape(x), jax.numpy.result_type(x), sharding=sharding)

        return jax.tree.map(place, tree)

    def shardings(self, tree: Any) -> Any:
        """Returns the sharding of each array of a train state on the mesh.

        With "fsdp" arrays of at least 4,096 elements are split along their largest dimension that divides.
        """
        mesh = self.mesh
        assert mesh is not None

        def sharding(x: Any) -> NamedSharding:
            shape = np.shape(x)
            sizes = [n if n % self.chips == 0 else 0 for n in shape]
            if self.sharding != "fsdp" or math.prod(shape) < LARGE or not any(sizes):
                return NamedSharding(mesh, PartitionSpec())
            return NamedSharding(mesh, PartitionSpec(*[None] * sizes.index(max(sizes)), "data"))

        return jax.tree.map(sharding, tree)

    def shapes(self, tree: Any) -> list[tuple[int, ...]]:
        """Returns the shape that one device has of each array of a train state."""
        shapes = [np.shape(x) for x in jax.tree.leaves(tree)]
        if self.mesh is None:
            return shapes
        return [s.shard_shape(shape) for s, shape in zip(jax.tree.leaves(self.shardings(tree)), shapes, strict=True)]


TARGETS = [
    Target("TPU v5e", "tpu"),
    Target("TPU v5e 2x2, data parallel", "tpu", 4, "replicated"),
    Target("TPU v5e 2x2, FSDP", "tpu", 4, "fsdp"),
    Target("H100", "cuda"),
    Target("4 H100, data parallel", "cuda", 4, "replicated"),
    Target("4 H100, FSDP", "cuda", 4, "fsdp"),
]


def missing(platform: str) -> str | None:
    """Returns what is missing to compile for a platform, as a sentence; None if nothing is."""
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec(PACKAGES[platform]) is not None:
            return None
    return f"To compile for {platform}, the package {PACKAGES[platform]} is needed: `make accelerators` installs it."


def prepare(platform: str) -> None:
    """Sets the environment of this process; call it before JAX starts a backend."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    if platform == "tpu":
        spec = importlib.util.find_spec("libtpu")
        assert spec is not None
        assert spec.origin is not None
        # there is no metadata server that would know these
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
        os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
        os.environ["TPU_LIBRARY_PATH"] = str(Path(spec.origin).with_name("libtpu.so"))
    else:  # without a GPU there is nothing to tune kernels on
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"


@functools.cache
def _topology(platform: str, chips: int) -> list[Any]:
    from jax.experimental import topologies

    if platform == "tpu":
        return list(topologies.get_topology_desc("v5e:2x2", "tpu").devices)
    importlib.import_module(PACKAGES[platform])  # registers the plugin
    config = (HERE / "h100.pbtxt").read_text()
    return list(topologies.get_topology_desc("", "cuda", target_config=config, topology=f"1x1x{chips}").devices)
