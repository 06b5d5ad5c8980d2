"""Files that grow: what is in them, where they stand, and cutting them back."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

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
                assert file.position() == expected.count(b"\n")
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
    assert file.position() == 0
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
    with pytest.raises(ValueError, match=r"a.txt has 0 lines, but 1 were written"):
        file.restore(place)
    with pytest.raises(ValueError, match="has 0 lines, but 1 were written"):
        AppendFile(tmp_path / "none.txt").restore(1)


def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write the log"):
        AppendFile(tmp_path / "file" / "a.txt", "log")
    with pytest.raises(IsADirectoryError, match="cannot write the log"):
        AppendFile(tmp_path, "log")
