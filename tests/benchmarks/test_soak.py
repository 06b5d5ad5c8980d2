"""Runs leave nothing in the process: the short form of `benchmarks/soak.py`."""

import importlib
from pathlib import Path

import pytest

RUNS = 6
OBJECTS = 1500  # of a run whose program is kept for later ones; `soak.py` measures once no more are kept


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not list descriptors")
def test_runs_leave_no_descriptors_and_no_threads(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    soak = importlib.import_module("soak")
    for number in range(3):
        soak.run(number, tmp_path)
    before = soak.figures()
    for number in range(3, RUNS):
        soak.run(number, tmp_path)
    after = soak.figures()
    assert after.descriptors <= before.descriptors
    assert after.threads <= before.threads
    assert after.objects - before.objects <= OBJECTS * (RUNS - 3)
