"""One epoch of a source: what is pulled, and where it stands."""

import pytest
from data.stream._stages import Passes, PassesWithState, Walk, as_stored, shown

import jaxcb as jc
from jaxcb._src.data.sources import Source
from jaxcb._src.data.stream.epochs import EpochIterator


def epoch_of(data, number=0):
    return EpochIterator(Source(data, "train_data"), number, {})


def test_a_batch_that_was_peeked_at_is_the_next_one_and_pulled_once():
    data = Passes([3])
    epoch = epoch_of(data)
    assert epoch.get_state() == {"pass": 0, "batches": 0}
    peeked = epoch.peek()
    assert epoch.peek() is peeked
    assert epoch.get_state() == {"pass": 0, "batches": 0}
    assert next(epoch) is peeked
    assert epoch.get_state() == {"pass": 0, "batches": 1}
    assert data.pulled == 1


def test_nothing_to_peek_at():
    epoch = epoch_of(Passes([0]))
    assert epoch.peek() is None
    assert list(epoch) == []


def test_the_state_of_the_users_iterator_is_part_of_each_position():
    pulled = list(epoch_of(PassesWithState([2]), number=1))
    assert [position.as_json() for _, position in pulled] == [
        {"pass": 1, "batches": n, "iterator": {"$bytes": text}} for n, text in ((1, "MQ=="), (2, "Mg=="))
    ]


@pytest.mark.parametrize(("make", "pulled"), [(Passes, 3 + 2), (PassesWithState, 3 + 1 + 1)])
def test_going_back_iterates_again(make, pulled):
    data = make([3])
    epoch = epoch_of(data)
    first, state = shown(next(epoch)), as_stored(epoch.get_state())
    rest = shown(list(epoch))
    epoch.set_state(state)
    assert data.walks == 2
    assert shown(next(epoch)) == rest[0]
    assert data.pulled == pulled  # with a state, the batch that began the iteration is pulled, and none is skipped
    assert first != rest[0]


def test_only_a_state_spares_the_batches_before_it():
    for data, replays in ((Passes([3]), True), (PassesWithState([3]), False)):
        epoch = epoch_of(data)
        epoch.peek()
        assert epoch.must_replay_to({"pass": 0, "batches": 2, "iterator": {"$bytes": "Mg=="}}) is replays
        assert epoch.must_replay_to({"pass": 0, "batches": 2})
        assert not epoch.must_replay_to({"pass": 0, "batches": 0})


def test_an_epoch_that_ends_before_the_state_is_an_error():
    with pytest.raises(jc.errors.DataError, match="ended after 3 batches, but the run to resume has trained on 4"):
        epoch_of(Passes([3])).set_state({"pass": 0, "batches": 4})


def test_the_users_iterator_is_freed_at_the_end():
    class Noted(Walk):
        freed = 0

        def __del__(self):
            Noted.freed += 1

    class Data(Passes):
        def walk(self, at, length):
            return Noted(self, at, length)

    epoch = epoch_of(Data([2]))
    assert len(list(epoch)) == 2
    assert Noted.freed == 1
    assert list(epoch) == []


def test_an_error_names_epoch_and_batch():
    def fails():
        yield 1
        raise KeyError

    epoch = epoch_of(fails())
    next(epoch)
    with pytest.raises(KeyError) as caught:
        next(epoch)
    assert caught.value.__notes__ == ["This happened while batch 2 of pass 1 over train_data (generator) was pulled."]
