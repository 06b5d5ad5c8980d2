"""A run that is killed anywhere, and started again until it ends, is the run that was never killed."""

import itertools
import signal
from collections import Counter

import numpy as np
import pytest
from loop._killing import Kill, at_random, chance, differences, in_saves, killed_run, stopped_in_a_save, whole_run

pytest.importorskip("sklearn")

KILLS = 25  # of each of four kinds of run
RUNS = [("looped", "arrays"), ("stepped", "stream")]
pytestmark = pytest.mark.usefixtures("children_share_the_cache")


def start(directory, executor, data):
    options = ("--executor", executor, "--data", data)
    return options, whole_run(directory, options)


@pytest.mark.long
@pytest.mark.parametrize(("executor", "data"), RUNS)
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, executor, data):
    options, _ = start(tmp_path / "whole", executor, data)
    hits = killed_run(tmp_path / "killed", options, [stopped_in_a_save(chance())])
    assert hits.places.total() > 0  # it waits for the save
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


@pytest.mark.long
@pytest.mark.parametrize(("executor", "data"), [*itertools.product(("looped", "stepped"), ("arrays", "stream"))])
def test_a_hundred_kills(tmp_path, executor, data):
    """25 of each executor and kind of data. The run stops early, and it may be hit after that."""
    options, seconds = start(tmp_path / "whole", executor, data)
    with np.load(tmp_path / "whole" / "end.npz") as end:
        assert str(end["stop_reason"]).startswith("EarlyStopping")
    rng, hits, lives = chance(), Counter(), 0
    for number in range(KILLS):  # runs; most take several kills
        kills = []
        for _ in range(min(8, KILLS - hits.total())):
            random_one = Kill(at_random(rng, seconds), rng.choice([signal.SIGKILL, signal.SIGTERM]))
            kills.append(rng.choice((stopped_in_a_save(rng), Kill(in_saves(rng, 4)), random_one)))
        found = killed_run(tmp_path / str(number), options, kills)
        assert differences(tmp_path / "whole", tmp_path / str(number)) == []
        hits, lives = hits + found.places, lives + found.lives
        if hits.total() >= KILLS:
            break
    print(f"{executor}, {data}: {lives} processes in {number + 1} runs, killed in {dict(hits)}; no bit differs")
    assert hits.total() >= KILLS


def test_differences_are_found(tmp_path):
    """The comparison itself: one bit, one byte, one file."""
    for name in ("a", "b"):
        for inner in ("exports", "checkpoints", "result"):
            (tmp_path / name / inner).mkdir(parents=True)
        (tmp_path / name / "log.csv").write_text("1\n")
        np.savez(tmp_path / name / "end.npz", x=np.float32([0.0, np.nan]))
    assert differences(tmp_path / "a", tmp_path / "b") == []
    np.savez(tmp_path / "b" / "end.npz", x=np.float32([-0.0, np.nan]))
    (tmp_path / "b" / "log.csv").write_text("1\n1\n")
    (tmp_path / "b" / "checkpoints" / ".saving-step_000000001").mkdir()
    found = differences(tmp_path / "a", tmp_path / "b")
    assert [line.split(":")[0].split(" ")[0] for line in found] == [
        "end.npz",
        "checkpoints/.saving-step_000000001",
        "log.csv",
    ]
