"""Plan, then build: what is known of data before its feed is made, and what the feed does with it."""

import weakref

import jax
import numpy as np
import pytest
from data.stream._stages import Passes, batch
from loop._watch import threads

from jaxcb._src.data.feed import Chunk
from jaxcb._src.data.inputs import DataConfig
from jaxcb._src.data.pipeline import open_feed, plan_data
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.data.resident import ResidentPlan

X = np.arange(10, dtype=np.float64).reshape(5, 2)


def test_rows_are_described_as_the_device_has_them():
    plan = plan_data(X, DataConfig(batch_size=2, seed=3))
    assert isinstance(plan, ResidentPlan)
    assert (plan.spec.epoch_len, plan.spec.layout.rows, plan.spec.layout.batch_size) == (3, 5, 2)
    assert plan.spec.layout.remainder == 1
    assert plan.spec.example == jax.ShapeDtypeStruct((2, 2), np.float32)
    assert plan.spec.layout_for(stacked=False) == plan.spec.layout


def test_a_stream_is_described_by_its_first_batch():
    data = Passes([3])
    plan = plan_data(data, DataConfig(epochs=1))
    assert data.pulled == 1
    assert (plan.spec.epoch_len, plan.spec.key) == (UNBOUNDED, None)
    assert plan.spec.example == jax.ShapeDtypeStruct((2, 1), np.float32)
    assert [plan.spec.layout_for(stacked=stacked).kind for stacked in (True, False)] == ["stacked", "single"]


@pytest.mark.parametrize("data", [X, Passes([3])], ids=["rows", "stream"])
def test_a_description_holds_no_data(data):
    spec = plan_data(data, DataConfig(epochs=1, batch_size=2 if data is X else None)).spec
    leaves = jax.tree.leaves((spec.example, spec.layout, spec.epoch_len))
    assert not any(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)


def test_rows_are_one_chunk_for_ever():
    plan = plan_data(X, DataConfig(batch_size=2))
    feed = open_feed(plan)
    chunk = feed.next(4, wait=False)
    assert isinstance(chunk, Chunk)
    assert chunk.data is feed.data
    assert feed.next(4, wait=False) == chunk
    assert feed.get_state() is None


class Status:
    """Where a run is."""

    over, controls = False, {}

    def __init__(self, step, epoch=0):
        self.step, self.epoch, self.cursor = step, epoch, step


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "lists"])
def test_a_feed_begins_with_the_batch_that_was_looked_at(stacked):
    data = Passes([3])
    feed = open_feed(plan_data(data, DataConfig(epochs=1)), stacked=stacked)
    assert data.pulled == 1
    chunk = feed.next(2, wait=True)
    assert isinstance(chunk, Chunk)
    first = chunk.batches[0] if chunk.batches else chunk.data[0]
    np.testing.assert_array_equal(first, batch(0))
    feed.close()
    assert data.walks == 1


def test_chunks_that_were_not_used_are_given_again():
    feed = open_feed(plan_data(Passes([7]), DataConfig(epochs=1)))
    first, second, third = (feed.next(2, wait=True) for _ in range(3))
    assert feed.confirm(Status(1), again=True) == UNBOUNDED
    assert [feed.next(2, wait=True) for _ in range(3)] == [first, second, third]
    assert feed.get_state() == {"pass": 0, "batches": 1}
    feed.confirm(Status(4))
    assert isinstance(feed.next(2, wait=True), Chunk)
    feed.confirm(Status(4), again=True)
    assert feed.next(2, wait=True) is third
    feed.close()


def test_a_feed_is_freed_with_its_last_reference():
    feed = open_feed(plan_data(Passes([3]), DataConfig(epochs=1)))
    while feed.next(2, wait=True) is not None:
        pass
    feed.close()
    assert not threads()
    freed = weakref.ref(feed)
    del feed
    assert freed() is None


def test_the_epoch_that_was_opened_with_other_controls_is_freed():
    class Data(list):
        """Batches that can be referred to weakly."""

    made = []

    def data(epoch, controls):
        found = Data([batch(controls["level"])])
        made.append(weakref.ref(found))
        return (x for x in found)

    plan = plan_data(data, DataConfig(epochs=1), controls={"level": 1})
    feed = open_feed(plan)
    del plan
    status = Status(0)
    status.controls = {"level": 2}
    feed.confirm(status)
    chunk = feed.next(2, wait=True)
    assert isinstance(chunk, Chunk)
    np.testing.assert_array_equal(chunk.data[0], batch(2))
    assert made[0]() is None
    feed.close()
