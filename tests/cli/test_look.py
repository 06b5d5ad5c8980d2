"""`jaxcb ls`, `show` and `tail`: they read runs of any state, without JAX, and change nothing."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from cli._runs import EPOCHS, KILLED_IN

from jaxcb._src.cli.look import _several
from jaxcb._src.report.find import find_runs
from jaxcb._src.report.run_folder import RunFolder

OLD = Path(__file__).parent.parent / "old_runs"
HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "matplotlib", "pandas")
MOST_MODULES = 420  # that a command without JAX imports; with JAX there are more than 1,500


def contents(folder):
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_ls_says_where_each_run_stands(call, runs):
    folder, results = runs
    rows = {row["run"]: row for row in call("ls", folder, "--json").json}
    assert list(rows) == ["finished", "killed", "some/sweep", "stopped"]
    assert [row["state"] for row in rows.values()] == ["finished", "killed", "finished", "stopped"]
    result = results["stopped"]
    best = result.history.best("val_loss")
    row = rows["stopped"]
    assert row["reason"] == result.stop_reason
    assert (row["epoch"], row["step"]) == (result.stopped_epoch + 1, int(result.state.step))
    assert (row["monitor"], np.float32(row["best"]), row["best_epoch"]) == ("val_loss", best["val_loss"], best["epoch"])
    assert row["differs_in"]["EarlyStopping.patience"] == "4"
    assert "EarlyStopping.monitor" not in row["differs_in"]
    assert rows["finished"]["epoch"] == EPOCHS
    assert rows["killed"]["epoch"] == KILLED_IN or rows["killed"]["epoch"] == KILLED_IN + 1


def test_numbers_of_the_members_of_a_sweep_are_one_text(call, folder):
    for command, place in (("ls", folder), ("show", folder / "some" / "sweep")):
        said = call(command, place).out.replace("\n", " ")
        assert "Array([" not in said
        assert "[0.01" not in said
    assert _several([1, 2, 3]) == "[1, 2, 3]"
    assert _several(list(range(9))) == "<9 numbers, 0 to 8>"
    assert _several("Array([1., 2.5, 3., 1e-3, 5., 6., 7.], dtype=float32)") == "<7 numbers, 0.001 to 7>"


def test_what_people_read_has_the_same_rows(call, folder):
    said = call("ls", folder)
    assert said.code == 0
    for text in ("stopped: EarlyStopping: val_loss has not improved", "killed", "some/sweep", f"{EPOCHS}/{EPOCHS}"):
        assert text in said.out


def test_a_run_that_trains_holds_the_lock_of_its_folder(call, stopped):
    assert RunFolder(stopped).standing.state == "stopped"
    descriptor = os.open(stopped, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert _state_in_another_process(stopped) == "running"
    finally:
        os.close(descriptor)
    assert _state_in_another_process(stopped) == "stopped"


def _state_in_another_process(run):
    program = [sys.executable, "-m", "jaxcb", "ls", str(run), "--json"]
    return json.loads(subprocess.run(program, capture_output=True, check=True).stdout)[0]["state"]


def test_show_has_the_states_that_the_run_ended_with(call, runs):
    folder, results = runs
    shown = call("show", folder / "stopped", "--json").json
    for name, state in results["stopped"].callback_states.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            key = jax.tree_util.keystr(path).removeprefix(".")
            assert np.array_equal(np.asarray(shown["callback_states"][name][key], leaf.dtype), leaf), (name, key)
    assert shown["facts"]["config"]["epochs"] == EPOCHS
    assert all(checkpoint["usable"] and checkpoint["bytes"] > 0 for checkpoint in shown["checkpoints"])
    assert {"history.csv", "log.csv"} <= shown["files"].keys()
    assert shown["processes"] == [dict(ran) for ran in results["stopped"].what_ran]
    text = call("show", folder / "stopped").out
    assert "patience=4" in text
    assert "wait=4" in text
    assert f"jax {jax.__version__}" in text


@pytest.mark.parametrize("name", ["single", "sweep"])
def test_runs_of_earlier_versions_are_read(call, name):
    shown = call("show", OLD / name, "--json").json
    assert shown["state"] == "killed"
    assert shown["states_problem"] == ""
    assert call("verify", OLD / name).code == 0


@pytest.mark.parametrize("command", ["ls", "show", "tail", "verify"])
def test_it_imports_no_jax_and_changes_nothing(folder, command):
    """What makes a start slow is what is imported, so modules are counted instead of seconds."""
    code = (
        "import sys; from jaxcb._src.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print([m for m in {HEAVY} if m in sys.modules], len(sys.modules))"
    )
    before = contents(folder)
    target = folder if command == "ls" else folder / "stopped"
    program = [sys.executable, "-c", code, command, str(target)]
    told = subprocess.run(program, capture_output=True, text=True, check=True)
    heavy, modules = told.stdout.splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]"
    assert int(modules) < MOST_MODULES
    assert contents(folder) == before


def test_tail_prints_the_last_rows_as_they_are_in_the_history(call, runs):
    folder, results = runs
    rows = [json.loads(line) for line in call("tail", folder / "stopped", "-n", 3, "--json").out.splitlines()]
    history = results["stopped"].history
    assert [row["epoch"] for row in rows] == history.epoch[-3:].tolist()
    assert [np.float32(row["val_loss"]) for row in rows] == history["val_loss"][-3:].tolist()
    assert "stopped: EarlyStopping" in call("tail", folder / "stopped").out


def test_tail_begins_at_the_end_of_a_history_of_any_length(call, runs, monkeypatch):
    folder, results = runs
    monkeypatch.setattr("jaxcb._src.cli.tail._BYTES", 200)  # more than a row, less than the history
    rows = [json.loads(line) for line in call("tail", folder / "stopped", "-n", 2, "--json").out.splitlines()]
    assert [row["epoch"] for row in rows] == results["stopped"].history.epoch[-2:].tolist()
    assert call("tail", folder / "stopped", "-n", 0, "--json").out == ""


def test_tail_follows_a_run_until_its_end(call, stopped):
    """Rows appear piece by piece while the lock is held; each is printed once, and none that is incomplete."""
    lines = (stopped / "history.csv").read_text().splitlines(keepends=True)
    (stopped / "history.csv").write_text("".join(lines[:2]))
    descriptor = os.open(stopped, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    begun = threading.Event()

    def write():
        begun.wait()
        with (stopped / "history.csv").open("a") as file:
            for line in lines[2:]:
                for part in (line[:7], line[7:]):
                    file.write(part)
                    file.flush()
        os.close(descriptor)

    thread = threading.Thread(target=write)
    thread.start()
    begun.set()
    rows = call("tail", stopped, "-n", 100, "--interval", 0.01, "--json").out.splitlines()
    thread.join()
    assert [json.loads(row)["epoch"] for row in rows] == list(range(len(lines) - 1))


def test_a_hostile_run_reaches_neither_terminal_nor_imports(call, stopped, tmp_path):
    """Escape sequences of a name are shown as text, and a class that a run names is not imported."""
    (tmp_path / "hostile.py").write_text("raise SystemExit('imported')")
    bad = stopped.rename(tmp_path / "a\x1b[31mred [bold]x")
    for name in ("ls", "show"):
        said = call(name, tmp_path if name == "ls" else bad)
        assert said.code == 0
        assert "\x1b" not in said.out
        assert "\\x1b[31mred [bold]x" in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["shov", "."], 2, "Did you mean 'show'?"),
        (["show", "nowhere"], 3, "does not exist, expected the directory of a run"),
        (["show", "stopper"], 3, "Did you mean 'stopped'?"),
        (["show", "."], 3, "has neither .jaxcb/run.jsonl nor a checkpoint in checkpoints/ or result/"),
        (["show", "."], 3, "Runs below it: finished, killed"),
        (["show", "stopped/history.csv"], 3, "is a file, expected the directory of a run"),
        (["show", "ftp://bucket/run"], 3, "an address"),
        (["ls", "stopped/history.csv"], 3, "is a file"),
        (["ls", "nowhere"], 3, "does not exist"),
        (["tail", "stopped", "--lines", "-1"], 2, "-1"),
        (["show", "stopped", "--jsn"], 2, "--json"),
    ],
)
def test_a_mistake_is_one_line_with_what_to_do(call, folder, monkeypatch, arguments, code, words):
    monkeypatch.chdir(folder)
    said = call(*arguments)
    assert said.code == code
    assert words in said.err


def test_a_run_of_a_newer_format_is_named(call, stopped):
    record = stopped / ".jaxcb" / "run.jsonl"
    record.write_text(json.dumps({"format": 99, "run": "0" * 16}) + "\n")
    said = call("verify", stopped)
    assert said.code == 1
    assert "not that of a run of this format" in said.out


def test_no_color_is_respected(folder):
    program = [sys.executable, "-m", "jaxcb", "ls", str(folder)]
    terminal = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}
    colored = subprocess.run(program, env=terminal, capture_output=True).stdout
    plain = subprocess.run(program, env={**terminal, "NO_COLOR": "1"}, capture_output=True).stdout
    assert b"\x1b[34m" in colored
    assert b"\x1b[34m" not in plain


def test_the_shell_completes_commands():
    environment = {**os.environ, "_JAXCB_COMPLETE": "bash_complete", "COMP_WORDS": "jaxcb sh", "COMP_CWORD": "1"}
    program = [sys.executable, "-c", "from jaxcb._src.cli.main import main; main()"]
    assert "show" in subprocess.run(program, env=environment, capture_output=True, text=True).stdout


def test_a_folder_of_parts_lists_its_parts(folder, tmp_path):
    shutil.copytree(folder / "some" / "sweep", tmp_path / "big" / "part_0")
    shutil.copytree(folder / "some" / "sweep", tmp_path / "big" / "part_1")
    shutil.copytree(folder / "some" / "sweep" / ".jaxcb", tmp_path / "big" / ".jaxcb")
    assert [run.path.name for run in find_runs(tmp_path)] == ["part_0", "part_1"]
