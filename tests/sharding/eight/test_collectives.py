"""A step exchanges between devices what one written by hand does, and callbacks add nothing."""

import importlib.util
from pathlib import Path

import pytest
from sharding.eight._cases import mesh

import jaxcb as jc
from jaxcb._src.sharding.placement import automatic

spec = importlib.util.spec_from_file_location(
    "collectives", Path(jc.__file__).parent.parent / "benchmarks" / "collectives.py"
)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("executor", ["looped", "stepped"])
@pytest.mark.parametrize("sharding", ["replicated", "fsdp"])
def test_collectives_are_those_of_a_step_by_hand(sharding, executor):
    devices = automatic(mesh())
    expected = bench.count(bench.by_hand(devices, sharding))
    assert expected["all-reduce"][0] >= 3
    assert ("all-gather" in expected) == (sharding == "fsdp")
    for callbacks in ([], bench.callbacks()):
        assert bench.count(bench.ours(devices, sharding, executor, callbacks)) == expected, callbacks
