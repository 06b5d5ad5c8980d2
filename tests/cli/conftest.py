"""Runs of all kinds, and the command line called as a user calls it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import optax
import pytest
from cli._runs import train
from loop._runs import loss_fn, make_data, make_params

import jaxcb as jc
from jaxcb._src.cli.main import main

TESTS = Path(__file__).parent.parent


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def call(capsys, monkeypatch):
    """Returns a function that runs a command: call("ls", path) -> Said."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: Any) -> Said:
        capsys.readouterr()
        try:
            main([str(a) for a in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Said(code, out, err)

    return run


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder of runs: one that stopped, one that finished, a killed one, a sweep; with the results of the first."""
    folder = tmp_path_factory.mktemp("runs")
    results = {name: train(folder / name, patience=p) for name, p in {"stopped": 4, "finished": 50}.items()}
    program = [sys.executable, str(Path(__file__).with_name("_runs.py")), str(folder / "killed")]
    killed = subprocess.run(program, env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"})
    assert killed.returncode == 9
    jc.sweep(
        make_params,
        loss_fn,
        make_data(48),
        over={"optimizer.learning_rate": [0.01, 0.3, 0.5]},
        optimizer=optax.sgd,
        epochs=6,
        batch_size=8,
        validation_data=make_data(20, seed=1),
        callbacks=[jc.EarlyStopping(patience=2)],
        run_dir=folder / "some" / "sweep",
        verbose=0,
    )
    return folder, results


@pytest.fixture(scope="session")
def folder(runs):
    return runs[0]


@pytest.fixture
def stopped(folder, tmp_path):
    """A copy of the run that stopped, to be damaged."""
    return Path(shutil.copytree(folder / "stopped", tmp_path / "stopped"))
