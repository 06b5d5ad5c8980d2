"""`jaxcb clean` removes what the run made, and nothing else; `jaxcb resume` continues it."""

import json
import sys

import pytest
from cli._runs import train

from jaxcb._src.report.clean import KINDS
from jaxcb._src.report.run_folder import RunFolder


def files(run):
    return {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}


def test_it_shows_first_and_removes_only_what_the_run_made(call, stopped):
    (stopped / "notes.txt").write_text("mine")
    (stopped / "best" / "mine.txt").write_text("mine")
    (stopped / "checkpoints" / "step_000000001").mkdir()
    (stopped / "checkpoints" / "step_000000001" / "mine").write_text("mine")
    before = files(stopped)
    said = call("clean", stopped, "--keep", "nothing")
    assert said.code == 0
    assert "pass --yes" in said.out
    assert files(stopped) == before
    assert call("clean", stopped, "--keep", "nothing", "--yes").code == 0
    assert files(stopped) == {"notes.txt", "best/mine.txt", "checkpoints/step_000000001/mine"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "nothing"])
def test_what_is_kept_stays_byte_for_byte(call, stopped, kind):
    places = {
        "checkpoints": lambda name: name.startswith("checkpoints/"),
        "latest": lambda name: name.startswith(f"checkpoints/{RunFolder(stopped).saved.path.name}/"),
        "result": lambda name: name.startswith("result/"),
        "exports": lambda name: name.startswith("best/"),
        "logs": lambda name: name == "log.csv",
        "history": lambda name: name == "history.csv",
    }
    kept = {name: (stopped / name).read_bytes() for name in files(stopped) if places[kind](name)}
    assert kept
    said = call("clean", stopped, "--keep", kind, "--yes", "--json")
    assert said.code == 0
    assert {name: (stopped / name).read_bytes() for name in files(stopped)} == kept | {
        ".jaxcb/run.jsonl": (stopped / ".jaxcb" / "run.jsonl").read_bytes()
    }
    assert kind not in {item["kind"] for item in said.json["removed"]}


def test_a_run_whose_latest_checkpoint_and_logs_are_kept_resumes(call, stopped):
    assert call("clean", stopped, *(f"--keep={kind}" for kind in ("latest", "logs", "history")), "--yes").code == 0
    assert len(RunFolder(stopped).checkpoints) == 1
    assert train(stopped, resume=True).stop_reason.startswith("EarlyStopping")


def test_a_record_that_names_a_file_outside_removes_nothing_there(call, stopped, tmp_path):
    (tmp_path / "victim.txt").write_text("mine")
    record = stopped / ".jaxcb" / "run.jsonl"
    for name in ("../victim.txt", str(tmp_path / "victim.txt")):
        with record.open("a") as file:
            file.write(json.dumps({"made": name, "files": []}) + "\n")
    assert call("clean", stopped, "--keep", "nothing", "--yes").code == 0
    assert (tmp_path / "victim.txt").read_text() == "mine"


@pytest.mark.parametrize("names", [["checkpoints", "best", "log.csv"], [".jaxcb"], [".jaxcb/run.jsonl", "history.csv"]])
def test_what_a_link_leads_to_outside_is_not_removed(call, stopped, tmp_path, names):
    outside = tmp_path / "outside"
    outside.mkdir()
    for number, name in enumerate(names):
        (stopped / name).rename(outside / str(number))
        (stopped / name).symlink_to(outside / str(number))
    before = {name: (outside / name).read_bytes() for name in files(outside)}
    assert call("clean", stopped, "--keep", "nothing", "--yes").code == 0
    assert {name: (outside / name).read_bytes() for name in files(outside)} == before
    assert {name for name in names if not (stopped / name).is_symlink()} == set()


def test_resume_prints_the_recorded_command_and_runs_it_when_told(call, stopped, tmp_path, monkeypatch):
    program = tmp_path / "program.py"
    program.write_text(f"import sys; open({str(tmp_path / 'ran')!r}, 'w').write(' '.join(sys.argv[1:])); sys.exit(7)")
    run = RunFolder(stopped)
    monkeypatch.setattr("jaxcb._src.cli.care.command_of", lambda run: [sys.executable, str(program), "a b", "c"])
    said = call("resume", run.path)
    assert said.code == 0
    assert said.out.strip().endswith(f"{program} 'a b' c")
    assert not (tmp_path / "ran").exists()
    assert call("resume", run.path, "--yes").code == 7
    assert (tmp_path / "ran").read_text() == "a b c"


def test_a_record_without_a_command_says_what_to_do(call, stopped):
    said = call("resume", stopped)
    if said.code:  # the record of this version may name one
        assert said.code == 3
        assert "resume=True" in said.err
