"""`jc.distributed.initialize`: nothing where there is one process, JAX's own where there are several."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from _patience import PATIENCE

import jaxcb as jc

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import jaxcb as jc
jc.distributed.initialize()
jc.distributed.initialize()  # again: nothing
import jax
print(jax.process_index(), jax.process_count(), jax.distributed.is_initialized())
"""


@pytest.fixture
def asked(monkeypatch):
    """What JAX's own function is called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **options: calls.append((given, options)))
    return calls


def test_without_a_cluster_nothing_happens(asked):
    jax.devices()  # JAX's own refuses to be called after that
    jc.distributed.initialize()
    assert asked == []


def test_one_process_needs_nobody(asked):
    jc.distributed.initialize("localhost:1", num_processes=1, process_id=0)
    assert asked == []


def test_arguments_go_through(asked):
    jc.distributed.initialize("host:1", 2, 1, local_device_ids=[0], initialization_timeout=7)
    options = {"heartbeat_timeout_seconds": 60, "local_device_ids": [0], "initialization_timeout": 7}
    assert asked == [(("host:1", 2, 1), options)]


def test_open_mpi_is_found(asked, monkeypatch):
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "1531576320.0;tcp://10.96.0.1:34911")
    jc.distributed.initialize()
    assert asked == [((None, None, None), {"heartbeat_timeout_seconds": 60})]


def in_slurm(tasks):
    """Starts the program as SLURM starts tasks, and returns what each printed."""
    # where JAX looks for process 0, by the job's number; other tests of the same kind may run beside this one
    for port in random.Random().sample(range(61440, 65536), 100):
        with socket.socket() as free:
            if free.connect_ex(("127.0.0.1", port)):
                break
    job = {"SLURM_JOB_ID": str(port - 61440), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(tasks)}
    plain = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment = plain | job | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=environment | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(tasks)
    ]
    try:
        return [process.communicate(timeout=PATIENCE)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_slurm_s_tasks_find_each_other():
    assert in_slurm(2) == ["0 2 True", "1 2 True"]


@pytest.mark.slow
def test_a_job_of_one_task_is_one_process():
    assert in_slurm(1) == ["0 1 False"]
