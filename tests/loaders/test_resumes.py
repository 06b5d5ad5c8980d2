"""Real loaders, in runs that are killed: each resumes bit for bit, or says that it cannot (`make loaders`)."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from loaders._kinds import KINDS

import jaxcb as jc

LIBRARIES = {"torch": "torch", "tf": "tensorflow", "grain": "grain"}
MIDDLE, END = 9, -1  # a step in the second epoch; the end of that epoch
pytestmark = pytest.mark.loaders


def processes(directory, at, kinds):
    """Runs some kinds in a process; returns what it has found, by kind."""
    tests, root = Path(__file__).parents[1], Path(jc.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": f"{root}:{tests}", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(tests / "loaders" / "_run.py"), str(directory), str(at), *kinds]
    # not a pipe, which workers that outlive a killed process would keep open
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
        try:
            code = process.wait(timeout=1200)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and its workers
        out.seek(0)
        said = out.read()
    assert code == (-signal.SIGKILL if at else 0), said[-5000:]
    lines = [line.partition("found: ")[2] for line in said.splitlines() if line.startswith("found: ")]
    return dict(json.loads(line) for line in lines)


@pytest.fixture(scope="module", params=LIBRARIES)
def library(request):
    pytest.importorskip(LIBRARIES[request.param])
    return request.param


@pytest.fixture(scope="module")
def kinds(library):
    return [name for name in KINDS if name.startswith(f"{library},")]


@pytest.fixture(scope="module")
def whole(kinds, tmp_path_factory):
    """What the runs find that are not killed."""
    return processes(tmp_path_factory.mktemp("whole"), 0, kinds)


def resumed(kinds, at, directory):
    """What runs find that were killed."""
    for kind in kinds:
        processes(directory, at, [kind])
    return processes(directory, 0, kinds)


def check(whole, found, expected):
    """The same bits and no warning, or a warning or an error that has the expected words."""
    for kind, own in found.items():
        if expected[kind] == "same":
            assert {"params", "loss"} <= whole[kind].keys(), (kind, whole[kind])
            assert (own["params"], own["loss"]) == (whole[kind]["params"], whole[kind]["loss"]), kind
            assert all(KINDS[kind].whole is not None and KINDS[kind].whole in text for text in own["warnings"]), own
        else:
            assert any(expected[kind] in text for text in [*own["warnings"], own.get("error", "")]), (kind, own)


def test_a_run_says_what_it_cannot_do_with_its_loader(whole):
    for kind, found in whole.items():
        expected = KINDS[kind].whole
        if KINDS[kind].refused is not None:
            assert KINDS[kind].refused in found["error"], kind
        else:
            assert [expected in text for text in found["warnings"]] == [True] * (expected is not None), (kind, found)
            assert "error" not in found, (kind, found)


def test_runs_that_are_killed_in_an_epoch(whole, kinds, tmp_path):
    accepted = [kind for kind in kinds if KINDS[kind].refused is None]
    found = resumed(accepted, MIDDLE, tmp_path)
    check(whole, found, {kind: KINDS[kind].finds for kind in accepted})


def test_runs_that_are_killed_after_an_epoch(whole, kinds, tmp_path):
    some = [kind for kind in kinds if KINDS[kind].boundary is not None]
    found = resumed(some, END, tmp_path)
    check(whole, found, {kind: KINDS[kind].boundary for kind in some})
