"""Several processes, on one machine or on many: JAX's own, begun with one call."""

import os
from typing import Any

import jax

HEARTBEAT_SECONDS = 60


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int = HEARTBEAT_SECONDS,
    **options: Any,
) -> None:
    """Joins the processes of a job, as `jax.distributed.initialize`; does nothing where there is one process.

    Call it before anything else makes use of JAX. The settings of SLURM, Kubernetes, Open MPI and Cloud TPU are found
    by JAX itself, and then no argument is needed. Where there is no such cluster, and none is described by the
    arguments, the process is by itself: one script serves a laptop and a cluster. To call it again changes nothing.

    Args:
        coordinator_address: `"host:port"` of process 0; the same for all.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        heartbeat_timeout_seconds: seconds after which a process that was not heard from is taken for dead; the others
            then end with an error that names it. A process that is busy, with a compilation too, is heard from.
        **options: of `jax.distributed.initialize`, such as `local_device_ids` and `cluster_detection_method`.

    Raises:
        RuntimeError: where JAX was used before, or cannot reach process 0.
        ValueError: for arguments that do not describe a process.

    Example:
        >>> import jaxcb as jc
        >>> jc.distributed.initialize()  # one process: nothing to do

    Source: `jax.distributed.initialize`.
    """
    described = (coordinator_address, num_processes, process_id) != (None, None, None) or bool(options)
    if jax.distributed.is_initialized() or num_processes == 1 or not (described or _in_cluster()):
        return
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        **options,
    )
    from jax._src import distributed  # the count of devices would tell it too, but makes them, and here is too early

    if distributed.global_state.num_processes == 1:  # a cluster's job with one task
        jax.distributed.shutdown()


def _in_cluster() -> bool:
    """Whether JAX would find the settings of a cluster, or the address of process 0; it has no public name for that."""
    from jax._src.clusters import ClusterEnv

    kinds = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
    return "JAX_COORDINATOR_ADDRESS" in os.environ or any(kind.is_env_present() for kind in kinds)
