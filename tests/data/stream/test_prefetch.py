"""The thread that takes chunks ahead."""

import threading

import pytest
from _patience import PATIENCE, until
from data.stream._stages import Passes, batch, close_all, stages
from loop._watch import threads

from jaxcb._src.data.feed import NOT_READY


@pytest.fixture(autouse=True)
def _no_thread_stays():
    yield
    close_all()
    assert not threads()


def prefetch_of(data, **config):
    return stages(data, **config)["prefetched"].prefetch


def test_the_thread_begins_with_the_first_chunk():
    prefetch = prefetch_of(Passes([100]))  # more than fits, so that the thread waits
    assert not threads()
    prefetch.next(wait=True)
    assert len(threads()) == 1


def test_two_chunks_wait_and_one_is_in_the_threads_hand():
    data = Passes([100])
    prefetch = prefetch_of(data, epochs=1)
    prefetch.next(wait=True)
    until(lambda: data.pulled == 4 * 4 + 1)  # and a batch, to see whether the epoch ends
    assert not threading.Event().wait(0.2)
    assert data.pulled == 4 * 4 + 1


def test_what_is_not_there_yet_is_not_waited_for():
    go = threading.Event()

    def slow():
        yield batch(0)
        assert go.wait(PATIENCE)
        yield batch(1)

    prefetch = prefetch_of(slow(), steps_per_epoch=1, epochs=2)
    assert prefetch.next(wait=True).size == 1
    assert prefetch.next(wait=False) is NOT_READY
    go.set()
    until(lambda: (found := prefetch.next(wait=False)) is not NOT_READY and found.size == 1)
    assert prefetch.next(wait=True) is None
    assert prefetch.next(wait=False) is NOT_READY


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
def test_an_error_is_raised_only_where_the_run_would_wait(kind):
    def fails():
        yield batch(0)
        raise kind

    prefetch = prefetch_of(fails(), steps_per_epoch=1, epochs=2)
    assert prefetch.next(wait=True).size == 1
    until(lambda: not threads())
    assert prefetch.next(wait=False) is NOT_READY
    for _ in range(2):
        with pytest.raises(kind):
            prefetch.next(wait=True)


def test_a_thread_that_has_begun_goes_nowhere_else():
    prefetch = prefetch_of(Passes([2]))
    prefetch.next(wait=True)
    with pytest.raises(RuntimeError, match="has begun"):
        prefetch.set_state(prefetch.get_state())
