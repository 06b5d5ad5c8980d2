"""Short epochs travel together."""

import pytest
from data.stream._stages import FOREVER

from jaxcb._src.data.progress import UNBOUNDED, FeedStart, StreamLimits
from jaxcb._src.data.stream.batch_spec import BatchSpec
from jaxcb._src.data.stream.chunking import ChunkDraft, FlushTimer, JoinedEpochs
from jaxcb._src.data.stream.epochs import SourcePosition

LIMITS = StreamLimits(UNBOUNDED, None, UNBOUNDED, UNBOUNDED, True)
SPEC = BatchSpec((), False, 8)


def draft(length, *, complete=True, most=8, late=False, spec=SPEC, base=0):
    made = ChunkDraft(0, base, 0, length)
    for n in range(length):
        made.add(SourcePosition(0, n + 1), spec, None)
    if complete:
        made.close(length, is_complete=True)
    made.emit(most, is_late=late)
    return made


class Given:
    """In place of `Chunks`."""

    def __init__(self, drafts, error=StopIteration):
        self.drafts, self.error, self.taken = iter(drafts), error, 0

    def __next__(self):
        self.taken += 1
        for one in self.drafts:
            return one
        raise self.error

    def get_state(self):
        return FeedStart()._asdict()


def joined(*drafts, joins=True, timer=None, error=StopIteration):
    return JoinedEpochs(Given(drafts, error), timer or FlushTimer(FOREVER), LIMITS, joins=joins)


def shapes(drafts):
    return [(len(one), one.epochs) for one in drafts]


CASES = {
    "as many as there is room for": ([draft(3)] * 5, [(6, 2), (6, 2), (3, 1)]),
    "of one length": ([draft(3), draft(2), draft(2), draft(3)], [(3, 1), (4, 2), (3, 1)]),
    "one that fills the chunk": ([draft(8), draft(8)], [(8, 1), (8, 1)]),
    "a part of an epoch": ([draft(2), draft(3, complete=False), draft(2, base=3, complete=False)],
                           [(2, 1), (3, 1), (2, 1)]),
    "the next one is longer": ([draft(2), None, draft(4)], [(2, 1), (4, 1)]),
    "too late to wait": ([draft(2), draft(2, late=True), draft(2)], [(4, 2), (2, 1)]),
    "of one spec": ([draft(2), draft(2, spec=BatchSpec((), False, 9))], [(2, 1), (2, 1)]),
    "an epoch that is only closed": ([draft(2), draft(0, complete=False, base=2)], [(2, 1), (0, 1)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_which_epochs_are_joined(case):
    given, expected = CASES[case]
    fresh = [one and draft(len(one), complete=one.is_complete, late=one.is_late, spec=one.spec or SPEC, base=one.base)
             for one in given]  # fmt: skip
    assert shapes(joined(*fresh)) == expected


def test_none_are_joined_where_none_may_wait():
    assert shapes(joined(draft(2), None, draft(2), joins=False)) == [(2, 1), (2, 1)]


def test_a_longer_epoch_does_not_keep_those_before_it_waiting():
    given = Given([draft(2), None, draft(4)])
    stage = JoinedEpochs(given, FlushTimer(FOREVER), LIMITS, joins=True)
    assert len(next(stage)) == 2
    assert given.taken == 2


def test_an_error_comes_after_the_epochs_before_it():
    stage = joined(draft(2), draft(2), error=KeyError)
    assert shapes([next(stage)]) == [(4, 2)]
    for _ in range(2):
        with pytest.raises(KeyError):
            next(stage)


def test_time_counts_from_the_first_batch_that_waits():
    timer = FlushTimer(-1.0)
    assert not timer.is_over
    stage = joined(draft(2), draft(3), draft(3), timer=timer)
    timer.start()
    assert timer.is_over
    assert shapes([next(stage)]) == [(2, 1)]
    assert timer.is_over  # the epoch of three waits
    assert shapes([next(stage)]) == [(6, 2)]
    assert not timer.is_over


def test_the_state_is_that_of_the_last_chunk_and_not_of_what_waits():
    stage = joined(draft(2), draft(3), draft(3))
    next(stage)
    assert stage.get_state()["cursor"] == 0
    assert (stage.get_state()["epoch"], stage.get_state()["step"]) == (1, 2)
