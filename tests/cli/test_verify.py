"""`jaxcb verify` finds any changed byte, and repairs what a killed process has left."""

import json

import pytest
from cli._runs import train
from hypothesis import given
from hypothesis import strategies as st

from jaxcb._src.report.run_folder import RunFolder
from jaxcb._src.report.verify import verify


def problems(run, **how):
    return {finding.what: finding.problem for finding in verify(RunFolder(run), **how) if finding.problem}


@pytest.mark.parametrize("name", ["stopped", "finished", "killed", "some/sweep"])
def test_a_whole_run_is_whole(call, folder, name):
    said = call("verify", folder / name, "--json")
    assert said.code == 0
    assert said.json["ok"]
    assert {"history.csv", "record of files"} <= {finding["what"] for finding in said.json["findings"]}


@given(data=st.data())
def test_any_changed_byte_of_a_checkpoint_or_a_log_is_found(folder, data):
    run = folder / "stopped"
    last = [run / name for name in RunFolder(run).facts["files"]]
    files = [p for store in ("checkpoints", "result") for p in (run / store).rglob("*") if p.is_file()] + last
    path = data.draw(st.sampled_from(sorted(p for p in files if p.stat().st_size)))
    before = path.read_bytes()
    at = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    try:
        found = problems(run, arrays=False)
    finally:
        path.write_bytes(before)
    inside = path.relative_to(run)
    whole = inside.parts[0] if len(inside.parts) == 1 else "/".join(inside.parts[:2])
    assert whole in found


def test_the_arrays_are_those_that_the_manifest_names(call, stopped):
    """A manifest with right checksums of the wrong arrays: what is stored is another shape than it says."""
    import zlib

    newest = max((stopped / "checkpoints").glob("step_*"))
    text = (newest / "manifest.json").read_bytes()
    body = text[text.index(b'"manifest": ') + 12 : -2].replace(b"[3, 1]", b"[1, 3]")
    (newest / "manifest.json").write_bytes(b'{"checksum": "%08x", "manifest": %b}\n' % (zlib.crc32(body), body))
    assert problems(stopped, arrays=False) == {}
    assert "by the manifest" in problems(stopped)[f"checkpoints/{newest.name}"]
    assert call("verify", stopped).code == 1


def test_a_log_that_disagrees_with_the_history_is_found(stopped):
    """A number that was changed after the last checkpoint, where no checksum is known."""
    log = stopped / "log.csv"
    lines = log.read_text().splitlines(keepends=True)
    names = lines[0].strip().split(",")
    cells = lines[-1].strip().split(",")
    cells[names.index("loss")] = "123.0"
    log.write_text("".join([*lines[:-1], ",".join(cells) + "\n"]))
    found = list(verify(RunFolder(stopped), arrays=False))
    assert any(f.what == "log.csv" and f.problem for f in found)


def test_repair_says_what_it_would_do_and_does_it_when_told(call, stopped):
    newest = max((stopped / "checkpoints").glob("step_*"))
    damaged = next(p for p in newest.rglob("*") if p.name == "manifest.ocdbt")
    damaged.write_bytes(damaged.read_bytes() + b"x")
    run = json.loads((stopped / ".jaxcb" / "run.jsonl").read_text().splitlines()[0])["run"]
    left = stopped / "checkpoints" / f".saving-{run}-step_000000099"
    left.mkdir()
    (left / "half").write_text("x")
    other = stopped / "checkpoints" / ".saving-ffffffffffffffff-step_000000099"  # of another run
    other.mkdir()
    with (stopped / "history.csv").open("a") as file:
        file.write("99,9,0.")
    history = (stopped / "history.csv").read_text()

    said = call("verify", stopped, "--repair")
    assert said.code == 1
    assert "Nothing was changed" in said.out
    assert newest.exists()
    assert left.exists()
    assert (stopped / "history.csv").read_text() == history

    assert call("verify", stopped, "--repair", "--yes").code == 0
    assert not newest.exists()
    assert not left.exists()
    assert other.exists()
    assert history.startswith((stopped / "history.csv").read_text())
    assert problems(stopped) == {}
    assert train(stopped, resume=True).stop_reason.startswith("EarlyStopping")  # it resumes from the one before


def test_a_missing_file_is_named(stopped):
    (stopped / "log.csv").unlink()
    assert "is missing" in problems(stopped)["log.csv"]


def test_an_unusable_manifest_is_named(stopped):
    for newest in (stopped / "checkpoints").glob("step_*"):
        (newest / "manifest.json").write_text("nonsense")
        assert "has changed since it was written" in problems(stopped)[f"checkpoints/{newest.name}"]
    assert "none of them can be used" in problems(stopped)["checkpoints"]
    assert RunFolder(stopped).standing.state == "damaged"
