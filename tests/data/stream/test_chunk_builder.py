"""The builder of chunks: what is emitted after which batch."""

import numpy as np
import pytest
from data.stream._stages import FOREVER, Passes, batch, stages

import jaxcb as jc
from jaxcb._src.data.progress import UNBOUNDED, FeedStart, StreamLimits
from jaxcb._src.data.stream.batch_spec import BatchValidator
from jaxcb._src.data.stream.chunking import ChunkBuilder, ChunkLimit, FlushTimer
from jaxcb._src.data.stream.epochs import SourcePosition

VALIDATOR = BatchValidator("train_data", batch(0), 8)
OPEN = StreamLimits(UNBOUNDED, None, UNBOUNDED, UNBOUNDED, True)


def item(n, given=None):
    leaves, spec = VALIDATOR.validate(batch(n) if given is None else given, n, False)
    return SourcePosition(0, n), spec, leaves


def builder_of(limits=OPEN, most=3, seconds=FOREVER):
    return ChunkBuilder(limits, ChunkLimit(most), FlushTimer(seconds))


def sizes(drafts):
    return [None if draft is None else len(draft) for draft in drafts]


def test_nothing_is_emitted_before_a_chunk_is_full():
    builder = builder_of()
    assert [sizes(builder.add(item(n), False)) for n in range(1, 5)] == [[], [], [3], []]
    assert sizes(builder.take()) == [1]
    assert builder.take() == ()
    assert (builder.epoch, builder.cursor, builder.step) == (0, 4, 4)


def test_the_run_may_change_how_much_is_full():
    limit = ChunkLimit(1)
    builder = ChunkBuilder(OPEN, limit, FlushTimer(FOREVER))
    assert sizes(builder.add(item(1), False)) == [1]
    limit.set(2)
    assert [sizes(builder.add(item(n), False)) for n in (2, 3)] == [[], [2]]
    fixed = ChunkLimit(16, fixed=True)
    fixed.set(2)
    assert fixed.most == 16


def test_the_last_batch_of_an_epoch_ends_a_chunk_which_has_its_length():
    builder = builder_of()
    builder.add(item(1), False)
    (draft,) = builder.add(item(2), True)
    assert (draft.closes, draft.is_complete, draft.epoch_len) == (True, True, 2)
    assert (builder.epoch, builder.cursor, builder.step) == (1, 0, 2)


def test_the_last_batch_of_the_run_closes_its_epoch():
    builder = builder_of(OPEN._replace(end_step=2))
    builder.add(item(1), False)
    assert not builder.is_over
    (draft,) = builder.add(item(2), False)
    assert (draft.closes, draft.is_complete, draft.epoch_len) == (True, False, UNBOUNDED)
    assert builder.is_over


def test_the_run_is_over_after_its_last_epoch():
    builder = builder_of(OPEN._replace(end_epoch=1))
    builder.add(item(1), True)
    assert builder.is_over


@pytest.mark.parametrize(("seconds", "emitted"), [(FOREVER, []), (-1.0, [1])])
def test_batches_wait_for_no_longer_than_allowed(seconds, emitted):
    (draft, *_) = (*builder_of(seconds=seconds).add(item(1), False), None)
    assert sizes([draft] if draft else []) == emitted
    if draft:
        assert draft.is_late


def test_a_smaller_batch_is_a_chunk_of_its_own():
    builder = builder_of()
    builder.add(item(1), False)
    before, smaller = builder.add(item(2, batch(2, rows=1)), False)
    assert sizes([before, smaller]) == [1, 1]
    assert (before.base, smaller.base, smaller.most) == (0, 1, 1)
    assert builder.add(item(3), False) == ()  # workers of a loader may each end with a smaller one
    assert sizes(builder.add(item(4, batch(4, rows=1)), True)) == [1, 1]


def test_batches_of_two_specs_are_no_chunk():
    builder = builder_of()
    builder.add(item(1), False)
    assert sizes(builder.add(item(2, batch(2).astype(np.float64)), False)) == [1]
    assert sizes(builder.take()) == [1]


def test_an_epoch_that_gets_longer_than_the_previous_one_says_so_once():
    builder = builder_of(most=9)
    builder.add(item(1), False)
    builder.add(item(2), True)
    assert [sizes(builder.add(item(n), False)) for n in (1, 2, 3)] == [[], [None], []]


@pytest.mark.parametrize("limits", [OPEN._replace(epoch_len=2), OPEN._replace(end_step=2)])
def test_a_run_that_was_resumed_before_its_epoch_was_closed_begins_with_that(limits):
    builder = builder_of(limits)
    (draft,) = builder.begin_at(FeedStart(0, 2, 2))
    assert (len(draft), draft.closes, draft.base, draft.epoch_len) == (0, True, 2, limits.epoch_len)
    assert (builder.epoch, builder.cursor, builder.is_over) == (1, 0, limits.end_step == 2)


def test_a_resumed_epoch_without_a_batch_is_closed_once_that_is_known():
    builder = builder_of()
    assert builder.begin_at(FeedStart(0, 2, 2)) == ()
    end = (SourcePosition(1, 0), None, None)
    (draft,) = builder.add(end, False)
    assert (len(draft), draft.closes, draft.epoch_len) == (0, True, 2)
    assert builder.add(end, False) == ()  # that of an epoch which is closed already


def test_an_error_comes_after_the_batches_before_it():
    def fails():
        yield from map(batch, range(2))
        raise KeyError

    chunks = stages(fails())["chunks"]
    assert len(next(chunks)) == 2
    with pytest.raises(KeyError):
        next(chunks)


def test_data_that_is_used_up_says_when():
    chunks = stages((batch(i) for i in range(5)), steps_per_epoch=4, epochs=2)["chunks"]
    assert sizes([next(chunks), next(chunks)]) == [4, 1]
    with pytest.raises(jc.errors.DataError, match="a generator that was used up after 5 batches, in epoch 2"):
        next(chunks)


def test_the_state_after_the_last_chunk_of_an_epoch_is_the_begin_of_the_next_one():
    chunks = stages(Passes([2]))["chunks"]
    next(chunks)
    assert chunks.get_state() == {"epoch": 1, "cursor": 0, "step": 2, "position": {"pass": 1, "batches": 0}}
    cut = stages(Passes([5]), steps_per_epoch=2)["chunks"]
    next(cut)
    assert cut.get_state() == {"epoch": 1, "cursor": 0, "step": 2, "position": {"pass": 0, "batches": 2}}
