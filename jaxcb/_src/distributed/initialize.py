"""Initialization of JAX for several processes, on one machine or on many."""

import os
from typing import Any

import jax

from jaxcb._src.utils.errors import check_int, check_text

HEARTBEAT_SECONDS = 60


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int = HEARTBEAT_SECONDS,
    **options: Any,
) -> None:
    """Joins the processes of a job like `jax.distributed.initialize`; does nothing for a single process.

    Call it before anything else uses JAX. JAX detects SLURM, Kubernetes, Open MPI and Cloud TPU by itself; no argument
    is needed there. Without such a cluster and without arguments, the process runs alone: the same script works on a
    laptop and on a cluster. Further calls have no effect.

    Args:
        coordinator_address: `"host:port"` of process 0; equal on all processes.
        num_processes: number of processes.
        process_id: index of this process, from 0.
        heartbeat_timeout_seconds: seconds without a heartbeat after which a process is regarded as dead; the others
            then end with an error that names it. A busy process, such as one that compiles, still sends heartbeats.
        **options: of `jax.distributed.initialize`, such as `local_device_ids` and `cluster_detection_method`.

    Raises:
        RuntimeError: if JAX was used before, or process 0 cannot be reached.
        ValueError: for arguments that do not describe a process.

    Example:
        >>> import jaxcb as jc
        >>> jc.distributed.initialize()  # one process: nothing to do

    Source: `jax.distributed.initialize`.
    """
    owner = "initialize"
    if coordinator_address is not None and ":" not in check_text(owner, "coordinator_address", coordinator_address):
        raise ValueError(f"{owner}: coordinator_address must be 'host:port', got {coordinator_address!r}.")
    if num_processes is not None:
        num_processes = check_int(owner, "num_processes", num_processes, least=1, concrete=True)
    if process_id is not None:
        index: int = check_int(owner, "process_id", process_id, concrete=True)
        if num_processes is not None and index >= num_processes:
            raise ValueError(f"{owner}: process_id must be below num_processes, which is {num_processes}, got {index}.")
    heartbeat = check_int(owner, "heartbeat_timeout_seconds", heartbeat_timeout_seconds, least=1, concrete=True)
    described = (coordinator_address, num_processes, process_id) != (None, None, None) or bool(options)
    if jax.distributed.is_initialized() or num_processes == 1 or not (described or _in_cluster()):
        return
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=heartbeat,
        **options,
    )
    from jax._src import distributed  # `jax.process_count()` would initialize the devices, which is too early here

    if distributed.global_state.num_processes == 1:  # a cluster job with one task
        jax.distributed.shutdown()


def _in_cluster() -> bool:
    """Returns whether JAX would detect a cluster or the address of process 0. JAX has no public function for this."""
    from jax._src.clusters import ClusterEnv

    kinds = (kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method)
    return "JAX_COORDINATOR_ADDRESS" in os.environ or any(kind.is_env_present() for kind in kinds)
