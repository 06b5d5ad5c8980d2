"""`make bench-gpu` where there is no GPU: what it says, and how it reads a trace."""

import gzip
import importlib
import json
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module


def test_without_a_gpu_it_says_what_is_missing(module, monkeypatch, capsys):
    gpu = module("gpu")
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    monkeypatch.setattr("jax.devices", lambda kind: (_ for _ in ()).throw(RuntimeError("no platforms of gpu")))
    assert gpu.main() == 2
    said = capsys.readouterr().err
    assert "JAX finds no GPU here: no platforms of gpu" in said
    assert "nvidia-smi" in said
    assert "requirements/bench-gpu.txt" in said


def test_its_cases_exist(module):
    assert set(module("gpu").CASES) <= set(module("cases").CASES)


def test_results_are_shown_with_what_was_left_out(module):
    text = module("gpu").as_text(
        {
            "card": "NVIDIA H100",
            "cases": {"memory": "left out: there was no time left"},
            "resume": {"arrays": 35, "different": 0, "steps": 800, "deterministic": True},
            "trace": {
                "jaxcb": {"kernels": 10, "idle": 0.125, "gaps": 3, "longest": 40.0, "kernels_per_step": 38.0},
                "scan by hand": "left out: there was no time left",
            },
        }
    )
    assert "- memory: left out: there was no time left" in text
    assert "0 of 35 arrays differ after 800 steps, with deterministic kernels" in text
    assert "| jaxcb | 38.0 | 12.5% | 3 | 40 |" in text
    assert "| scan by hand | left out: there was no time left | | | |" in text


def test_gaps_between_kernels_are_found(module, tmp_path):
    trace = module("_trace")

    def kernel(start, length, thread=1, process=7):
        return {"ph": "X", "pid": process, "tid": thread, "ts": start, "dur": length, "name": "k"}

    events = [
        {"ph": "M", "name": "process_name", "pid": 7, "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "name": "process_name", "pid": 9, "args": {"name": "/host:CPU"}},
        {"ph": "M", "name": "thread_name", "pid": 7, "tid": 1, "args": {"name": "Stream #13(Compute)"}},
        {"ph": "M", "name": "thread_name", "pid": 7, "tid": 2, "args": {"name": "XLA Ops"}},
        kernel(100, 10),
        kernel(105, 10),  # overlaps
        kernel(120, 10),  # behind a gap of 5 microseconds
        kernel(160, 40),  # behind a gap of 30
        kernel(0, 1000, thread=2),  # a name for many kernels, no kernel
        kernel(0, 5000, process=9),
    ]
    folder = tmp_path / "plugins" / "profile" / "one"
    folder.mkdir(parents=True)
    with gzip.open(folder / "host.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    found = trace.busy(trace.read(tmp_path))
    assert found == (4, pytest.approx(100e-6), pytest.approx(0.35), 1, pytest.approx(30.0))
    assert trace.busy(events[:2]) is None
    with pytest.raises(FileNotFoundError, match="holds no trace"):
        trace.read(tmp_path / "empty")
