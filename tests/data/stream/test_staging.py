"""Staging: each batch is copied once, and memory goes round."""

import numpy as np
from data.stream._stages import Passes, batch, stages

from jaxcb._src.data.stream.batch_spec import BatchValidator
from jaxcb._src.data.stream.staging import StagingPool

VALIDATOR = BatchValidator("train_data", batch(0), 4)


def filled(pool, numbers):
    for number in numbers:
        pool.add(*VALIDATOR.validate(batch(number), 1, False))


def rows(buffer, count):
    return buffer.leaves[0][:count, 0, 0].tolist()


def test_batches_after_those_that_are_taken_stay_in_their_order():
    pool = StagingPool()
    filled(pool, range(5))
    assert [rows(pool.take_first(n), n) for n in (1, 2, 2)] == [[0], [1, 2], [3, 4]]


def test_memory_that_is_released_is_used_again_and_no_other():
    pool = StagingPool()
    filled(pool, range(4))
    first = pool.take_first(4)
    filled(pool, range(4))
    second = pool.take_first(4)
    assert second is not first
    pool.release(first)
    filled(pool, range(4, 6))
    assert pool.take_first(2) is first
    assert rows(first, 2) == [4, 5]


def test_what_is_not_taken_can_be_dropped():
    pool = StagingPool()
    filled(pool, range(3))
    pool.clear()
    filled(pool, [7])
    assert rows(pool.take_first(1), 1) == [7]


def test_an_item_has_its_arrays_only_where_they_are_not_stacked():
    own = np.zeros((2, 1), np.float32)

    class Reuses:
        def __iter__(self):
            for i in range(2):
                own[:] = i
                yield own

    assert next(stages(Reuses())["staged"])[2] is None
    staged = stages(Reuses(), stacked=False)["staged"]
    copies = [next(staged)[2] for _ in range(2)]
    assert [x[0][0, 0] for x in copies] == [0, 1]


def test_the_end_of_an_epoch_is_not_staged():
    staged = stages(Passes([1]))["staged"]
    assert [next(staged)[1] is None for _ in range(2)] == [False, True]
