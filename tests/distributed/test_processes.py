"""Runs of several real processes on this machine, one CPU device each, against the run of one process."""

import csv
import json
import signal

import numpy as np
import pytest
from distributed._launch import started

pytestmark = pytest.mark.slow

# with its error; where process 0 is held in a step and gone first, JAX aborts what is left as it says goodbye
ENDED = {1, -signal.SIGABRT}


def run(tmp_path, count, name, *options, codes=None):
    """Runs to the end, and returns what each process came to and all that they wrote."""
    with started(count, tmp_path / name, tmp_path / f"{name}.out", *options) as group:
        found = group.end()
        assert all(code in allowed for code, allowed in zip(found, codes or [{0}] * count, strict=True)), (
            group.outputs()
        )
        outputs = [group.output(i) for i in range(count)]
    found = [tmp_path / f"{name}.out.{i}" for i in range(count)]
    return [json.loads(path.read_text()) for path in found if path.exists()], outputs


def cut(tmp_path, count, name, signum, whom, *options, beats=14):
    """Runs until process 0 waits, has a signal sent to one process, and returns the exit codes and the outputs."""
    options = (f"hold={beats}", "steps=2", *options)
    with started(count, tmp_path / name, tmp_path / f"{name}.out", *options) as group:
        group.until((tmp_path / f"{name}.out.held").exists)
        group.kill(whom, signum)
        (tmp_path / f"{name}.out.go").touch()
        ends = [i for i in range(count) if i != whom or signum in (signal.SIGTERM, signal.SIGINT)]
        codes = group.end(of=ends)
        return codes, [group.output(i) for i in range(count)]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def same_decisions(one, other):
    """Exactly what callbacks have decided, and within rounding what was measured."""
    for name in ("stopped_epoch", "step", "wait"):
        assert one[name] == other[name]
    assert one["history"].keys() == other["history"].keys()
    assert one["history"]["learning_rate"] == other["history"]["learning_rate"]
    for name in one["history"]:
        np.testing.assert_allclose(one["history"][name], other["history"][name], rtol=2e-4, atol=2e-5, err_msg=name)
    for name in one["params"]:
        np.testing.assert_allclose(one["params"][name], other["params"][name], rtol=2e-3, atol=2e-4, err_msg=name)


def event_files(directory):
    return [p.name for p in directory.rglob("events*")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process, on one device."""
    (found,), _ = run(tmp_path_factory.mktemp("alone"), 1, "run", "mesh=0")
    return found


def test_two_processes_are_one_run(tmp_path, alone):
    (first, second), outputs = run(tmp_path, 2, "run", "tensorboard=1")
    called, not_called = first.pop("called"), second.pop("called")
    assert first == second  # to the last bit, history and parameters
    same_decisions(first, alone)
    # process 0 writes, speaks and calls
    assert called == list(range(alone["stopped_epoch"] + 1))
    assert not_called == []
    assert "epoch 1/" in outputs[0]
    assert "epoch" not in outputs[1]
    for name in ("log.csv", "history.csv"):
        assert [int(row["epoch"]) for row in rows(tmp_path / "run" / name)] == called
    assert len({name.rpartition(".")[2] for name in event_files(tmp_path / "run" / "tb")}) == 1  # ends with the pid
    # what the outside is, process 0 says: 1, not 2
    assert {row["outside"] for row in rows(tmp_path / "run" / "host_metrics.csv")} == {"1.0"}


@pytest.mark.long
def test_sigterm_to_one_process_saves_one_step_and_the_same_command_goes_on(tmp_path):
    codes, outputs = cut(tmp_path, 2, "run", signal.SIGTERM, 1)
    assert codes == [143, 143], outputs
    steps = {int(p.name[5:14]) for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert max(steps) > 0
    (first, second), outputs = run(tmp_path, 2, "run")
    assert f"resuming {tmp_path / 'run'} at step {max(steps)}" in outputs[0]
    first.pop("called"), second.pop("called")
    assert first == second
    (whole, _), _ = run(tmp_path, 2, "whole")
    whole.pop("called")
    assert first == whole  # bit for bit, as if it had never been cut short
    assert (tmp_path / "run" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()


@pytest.mark.long
@pytest.mark.parametrize("whom", [0, 1])
def test_ctrl_c_at_one_process_ends_all(tmp_path, whom):
    codes, outputs = cut(tmp_path, 2, "run", signal.SIGINT, whom)
    told = [line for text in outputs for line in text.splitlines() if line.startswith("ended with KeyboardInterrupt")]
    assert len(told) == 2, outputs
    assert len(set(told)) == 1  # after the same step
    assert 0 not in codes


@pytest.mark.long
@pytest.mark.parametrize(("signum", "whom"), [(signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_a_process_that_dies_or_hangs_ends_the_others_and_a_restart_goes_on(tmp_path, alone, signum, whom):
    codes, outputs = cut(tmp_path, 2, "run", signum, whom, "heartbeat=10", "save=4", beats=20)
    assert codes[0] != 0, outputs
    other = outputs[1 - whom]  # JAX's own words name it by its number
    named = (f"process {whom} ", f"heartbeats):\n{whom}\n") if whom else ("leader", "coordination service")
    assert any(words in other.lower() for words in named), other
    (first, second), outputs = run(tmp_path, 2, "run", "save=4")
    assert "resuming" in outputs[0]
    assert first["history"] == second["history"]
    same_decisions(first, alone)
    assert [int(row["epoch"]) for row in rows(tmp_path / "run" / "log.csv")] == list(range(alone["stopped_epoch"] + 1))


@pytest.mark.long
def test_a_function_that_fails_on_process_0_ends_the_other_with_an_error_that_names_it(tmp_path):
    _, outputs = run(tmp_path, 2, "run", "fail=call", codes=[{1}, {1}])
    assert "ended with RuntimeError: a user's function" in outputs[0]
    assert "ended with ProcessError: process 0 (pid " in outputs[1]
    assert "failed: RuntimeError: a user's function" in outputs[1]


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 4), (4, 2)])
@pytest.mark.parametrize("data", ["arrays", "host", "stream"])
def test_another_number_of_processes_goes_on_where_the_run_stood(tmp_path, alone, before, after, data):
    codes, outputs = cut(tmp_path, before, "run", signal.SIGTERM, before - 1, f"data={data}")
    assert codes == [143] * before, outputs
    found, outputs = run(tmp_path, after, "run", f"data={data}")
    assert "resuming" in outputs[0]
    assert "up to rounding" in outputs[0]
    for other in found[1:]:
        assert other["history"] == found[0]["history"]
    if data == "stream":
        (alone,), _ = run(tmp_path, 1, "whole", "data=stream", "mesh=0")
    same_decisions(found[0], alone)


@pytest.mark.long
@pytest.mark.parametrize("executor", ["looped", "stepped"])
@pytest.mark.parametrize("sharding", ["replicated", "fsdp"])
def test_four_processes_are_one_run(tmp_path, alone, executor, sharding):
    found, _ = run(tmp_path, 4, "run", f"executor={executor}", f"sharding={sharding}")
    for other in found[1:]:
        assert other["history"] == found[0]["history"]
        assert other["params"] == found[0]["params"]
    same_decisions(found[0], alone)


@pytest.mark.long
@pytest.mark.parametrize("data", ["arrays", "host"])
def test_a_model_that_is_split_over_processes_sees_each_row_in_all_of_them(tmp_path, alone, data):
    (first, second), _ = run(tmp_path, 2, "run", "mesh=model", f"data={data}")
    assert first["history"] == second["history"]
    same_decisions(first, alone)


@pytest.mark.long
def test_a_stream_that_gives_less_on_one_process_is_an_error_that_says_so(tmp_path):
    _, outputs = run(tmp_path, 2, "run", "data=stream", "short=1", codes=[{1}, ENDED])
    assert "process 1 has other data than process 0" in outputs[1]
    assert "process 1 (pid" in outputs[0]


@pytest.mark.long
def test_a_sweep_spreads_its_members_over_processes(tmp_path):
    (first, second), outputs = run(tmp_path, 2, "run", "kind=sweep")
    assert first == second
    assert "shard" in outputs[0]
    assert "jaxcb" not in outputs[1]
    (alone,), _ = run(tmp_path, 1, "alone", "kind=sweep")
    np.testing.assert_allclose(first, alone, rtol=1e-4)
    assert len(rows(tmp_path / "run" / "history.csv")) == 3 * 4
