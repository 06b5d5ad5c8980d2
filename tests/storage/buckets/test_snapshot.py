"""Snapshots of a folder that changes meanwhile."""

import zlib

import pytest

from jaxcb._src.storage.buckets.snapshot import Limit, take


def never_known(name, item):
    return False


def read(item):
    return item.path.read_bytes()[: item.size]


def test_a_log_is_taken_up_to_its_limit_and_what_is_removed_later_stays(tmp_path):
    log, old = tmp_path / "log.csv", tmp_path / "checkpoints" / "step_1" / "arrays"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"arrays")
    log.write_bytes(b"1\n2\n3\n")
    snapshot = take(tmp_path, 1, {"log.csv": Limit(4, zlib.crc32(b"1\n2\n"))}, never_known)
    old.unlink()
    with log.open("ab") as file:
        file.write(b"4\n")
    assert {name: read(item) for name, item in snapshot.items.items()} == {
        "log.csv": b"1\n2\n",
        "checkpoints/step_1/arrays": b"arrays",
    }
    snapshot.drop()
    assert not snapshot.links.exists()


@pytest.mark.parametrize("part", ["", "part_1/"])
def test_the_record_covers_each_file_that_a_run_makes_while_a_snapshot_is_taken(tmp_path, part):
    """The run writes a name into its record first, so a file in the snapshot is in the record in it, too."""
    record = tmp_path / part / ".jaxcb" / "run.jsonl"
    record.parent.mkdir(parents=True)
    record.write_text("first\n")
    names = iter(("a.csv", "b.csv", "c.csv"))

    def makes_one_more(name, item):
        new = next(names, None)
        if new is not None:
            with record.open("a") as file:
                file.write(f"{new}\n")
            (tmp_path / part / new).write_text("row\n")
        return False

    snapshot = take(tmp_path, 1, {}, makes_one_more)
    known = read(snapshot.items[f"{part}.jaxcb/run.jsonl"]).decode().split()
    assert {name for name in snapshot.items if name.endswith(".csv")} <= {f"{part}{name}" for name in known}
    assert len(snapshot.items) == 4  # files that appear are found by a second look


@pytest.mark.parametrize(
    "name", [".saving-x-step_1/arrays", "manifest.json.half", "exports/01.x.jaxcb-new/d", "a.orbax-checkpoint-tmp/x"]
)
def test_what_is_incomplete_is_left_out(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    (tmp_path / "link").symlink_to(path)
    assert take(tmp_path, 1, {}, never_known).items == {}
