"""Files that grow: what is in them, where they stand, and cutting them back."""

import json
import os
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from _patience import PATIENCE
from hypothesis import given

from jaxcb._src.storage.ownership import RunRecord
from jaxcb._src.writers.files import AppendFile

LINES = st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: text + "\n")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), LINES),
        st.tuples(st.sampled_from(["position", "close", "flush", "reopen"]), st.none()),
        st.tuples(st.just("truncate"), st.integers(0, 5)),
    ),
    max_size=12,
)


@given(STEPS, st.booleans())
def test_a_file_holds_what_was_written_whatever_happens_between(tmp_path_factory, steps, append):
    """Against a string: writes add, a cut goes back to a noted place, closing and opening change nothing."""
    path = tmp_path_factory.mktemp("append") / "sub" / "file.txt"
    path.parent.mkdir()
    path.write_bytes(b"old\n")
    file = AppendFile(path, append=append)
    expected, touched, noted = (b"old\n" if append else b""), append, [0]
    for step, argument in steps:
        match step:
            case "write":
                file.write(argument)
                expected, touched = expected + argument.encode(), True
            case "position":
                assert file.position()["lines"] == expected.count(b"\n")
                noted.append(expected.count(b"\n"))
            case "truncate":
                noted = [n for n in noted if n <= expected.count(b"\n")]
                lines = noted[argument % len(noted)]
                file.restore(lines)
                expected, touched = b"".join(expected.splitlines(keepends=True)[:lines]), True
            case "reopen":
                file.close()
                file = AppendFile(path, append=touched)
            case _:
                getattr(file, step)()
        assert file.size == len(expected)
    file.close()
    assert path.read_bytes() == (expected if touched else b"old\n")


def test_nothing_is_touched_before_the_first_write(tmp_path):
    file = AppendFile(tmp_path / "new" / "a.txt")
    assert not (tmp_path / "new" / "a.txt").exists()
    assert file.position()["lines"] == 0
    file.close()
    assert not (tmp_path / "new" / "a.txt").exists()


def test_what_is_flushed_is_seen_by_others(tmp_path):
    file = AppendFile(tmp_path / "a.txt")
    file.write("one\n")
    file.flush()
    assert (tmp_path / "a.txt").read_text() == "one\n"
    file.close()


def test_a_line_that_was_cut_off_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text('{"a": 1}\n{"a"')
    file = AppendFile(path, append=True)
    file.write('{"a": 2}\n')
    file.close()
    assert path.read_text() == '{"a": 1}\n{"a"\n{"a": 2}\n'


def test_a_file_that_is_shorter_than_noted_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    file = AppendFile(path)
    file.write("one\n")
    place = file.position()
    path.write_text("")
    with pytest.raises(ValueError, match=r"a.txt has 0 bytes, but had 4 at the checkpoint"):
        file.restore(place)
    with pytest.raises(ValueError, match="has 0 lines, but had 1 at the checkpoint"):
        AppendFile(tmp_path / "none.txt").restore(1)


def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write the log"):
        AppendFile(tmp_path / "file" / "a.txt", "log")
    with pytest.raises(IsADirectoryError, match="cannot write the log"):
        AppendFile(tmp_path, "log")


# Files that several runs share


class Sharing:
    """A run that appends numbered lines, `a0`, `a1` ..., and may be killed and resumed."""

    def __init__(self, name, directory, path):
        self.name, self.directory, self.path = name, directory / name, path
        self.directory.mkdir()
        record = RunRecord(self.directory)
        record.begin()
        self.refused = False
        self.written = self.flushed = 0
        self._open(record)
        self.saved = (self.file.position(), 0)

    def _open(self, record):
        self.file = AppendFile(self.path, append=True, record=record, key="log", shared=True)
        self.file.head = "head\n"

    def write(self):
        self.file.write(f"{self.name}{self.written}\n")
        self.written += 1

    def flush(self):
        self.file.flush()
        self.flushed = self.written

    def save(self):
        self.saved = (json.loads(json.dumps(self.file.position())), self.written)
        self.flushed = self.written

    def resume(self):
        self.file._waiting = []  # which the kill took with it
        self.file.close()
        record = RunRecord.read(self.directory)
        assert record is not None
        self._open(record)
        try:
            self.file.restore(self.saved[0])
        except ValueError as error:
            self.refused = str(self.path) in str(error)
        if not self.refused:
            self.written = self.flushed = self.saved[1]

    def own(self, lines):
        return [line for line in lines if line.startswith(self.name)]


ACTS = st.lists(
    st.tuples(st.sampled_from(["write", "flush", "flush", "save", "resume", "stranger"]), st.integers(0, 1)),
    max_size=40,
)


@given(ACTS)
def test_no_line_of_another_is_lost_whoever_is_killed_and_resumed(tmp_path_factory, acts):
    """Each run has each of its lines once, in order, or is refused; lines of others stay whatever happens."""
    directory = tmp_path_factory.mktemp("shared")
    path = directory / "log.csv"
    runs = [Sharing(name, directory, path) for name in "ab"]
    strangers = 0
    for act, number in acts:
        before = path.read_text().splitlines() if path.exists() else []
        run = runs[number]
        if act == "stranger":
            if path.exists():  # else it would have no head
                with path.open("a") as file:
                    file.write(f"s{strangers}\n")
                strangers += 1
        elif not run.refused:
            if act == "flush":
                run.write()
            getattr(run, act)()
        after = path.read_text().splitlines() if path.exists() else []
        others = [line for line in before if not line.startswith(run.name) or run.refused]
        assert [line for line in after if line in set(others)] == others
        for each in runs:
            if not each.refused:
                assert each.own(after) == [f"{each.name}{i}" for i in range(each.flushed)]
        assert after.count("head") == bool(after)
    for run in runs:
        run.file._waiting = []
        run.file.close()


def test_runs_that_write_at_the_same_time_lose_nothing(tmp_path):
    code = (
        "import sys; from pathlib import Path; from jaxcb._src.writers.files import AppendFile\n"
        "file = AppendFile(Path(sys.argv[1]), append=True, shared=True); file.head = 'head\\n'\n"
        "for i in range(300):\n    file.write(f'{sys.argv[2]} {i}\\n'); file.flush()\n"
        "file.close()"
    )
    path = tmp_path / "log.csv"
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "abc"]
    assert [child.wait(PATIENCE) for child in children] == [0, 0, 0]
    lines = path.read_text().splitlines()
    assert lines[0] == "head"
    for name in "abc":
        assert [line for line in lines if line.startswith(name)] == [f"{name} {i}" for i in range(300)]
    assert len(lines) == 901


def test_a_disk_that_is_full_leaves_no_half_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    file = AppendFile(path, append=True, shared=True)
    file.write("one\n")
    file.flush()
    real = os.write

    def fails(descriptor, data):
        real(descriptor, bytes(data)[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", fails)
    file.write("two\n")
    with pytest.raises(OSError, match="cannot write the file: No space left on device"):
        file.flush()
    monkeypatch.undo()
    assert path.read_text() == "one\n"
    file.close()  # there is room again
    assert path.read_text() == "one\ntwo\n"


@pytest.mark.parametrize("position", [None, -1, 1.5, "1", [1], {}, {"end": "1"}, {"end": None}, True])
def test_a_place_that_is_none_is_refused(tmp_path, position):
    path = tmp_path / "log.csv"
    path.write_text("one\n")
    with pytest.raises(ValueError, match=r"for .*log.csv, which is not valid"):
        AppendFile(path).restore(position)
    assert path.read_text() == "one\n"


def test_lines_behind_an_old_checkpoints_are_not_cut_from_a_file_that_others_may_write_to(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("one\ntwo\n")
    AppendFile(path, append=True, shared=True).restore(2)
    with pytest.raises(ValueError, match=r"log.csv has 2 lines, and had 1 at the checkpoint.*may be another run's"):
        AppendFile(path, append=True, shared=True).restore(1)
    assert path.read_text() == "one\ntwo\n"
