"""The last batch of each epoch: what is pulled to find it."""

import itertools

import pytest
from data.stream._stages import Passes, batch, stages


def ends(stage, count=99):
    return [is_last for _, is_last in itertools.islice(stage, count)]


def test_the_source_ends_each_epoch():
    assert ends(stages(Passes([2, 1, 3]))["ends"], 6) == [False, True, True, False, False, True]


def test_the_end_is_found_one_batch_ahead():
    data = Passes([3])
    stage = stages(data)["ends"]
    assert [(next(stage)[1], data.pulled) for _ in range(3)] == [(False, 2), (False, 3), (True, 3)]


def test_no_batch_is_pulled_behind_the_last_one_of_the_run():
    data = Passes([5])
    assert ends(stages(data, epochs=None, steps=3)["ends"], 3) == [False] * 3
    assert data.pulled == 3


def test_a_resumed_epoch_without_a_batch_is_given_as_its_end():
    stage = stages(Passes([2, 2]))["ends"]
    stage.set_state({"step": 2, "position": {"pass": 0, "batches": 2}})
    (end, is_last), (following, _) = next(stage), next(stage)
    assert end[1] is None
    assert not is_last
    assert following[1] is not None


def test_a_number_of_steps_ends_an_epoch_and_nothing_is_pulled_ahead():
    data = Passes([5])
    stage = stages(data, steps_per_epoch=3)["ends"]
    found = [(next(stage)[1], data.pulled) for _ in range(7)]
    assert found == [(n % 3 == 0, n) for n in range(1, 8)]


@pytest.mark.parametrize("steps_per_epoch", [None, 5])
def test_an_error_comes_after_the_batch_before_it(steps_per_epoch):
    def fails():
        yield from map(batch, range(2))
        raise KeyError

    stage = stages(fails(), steps_per_epoch=steps_per_epoch)["ends"]
    assert [next(stage)[1] for _ in range(2)] == [False, False]
    for _ in range(2 if steps_per_epoch is None else 1):
        with pytest.raises(KeyError):
            next(stage)
