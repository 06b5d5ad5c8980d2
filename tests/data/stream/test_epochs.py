"""Epoch after epoch: where each ends, and with which controls it begins."""

import itertools
import threading

import pytest
from _patience import PATIENCE
from data.stream._stages import Passes, batch, shown

from jaxcb._src.data.sources import CallableSource, Source
from jaxcb._src.data.stream.epochs import EpochControls, EpochIterator, Epochs


def epochs_of(source, controls=None, opened=None):
    first = EpochIterator(source, 0, opened or {})
    first.peek()
    return Epochs(source, first, controls)


def numbers(items, count):
    return [item[0] if item[0] == "END" else item[0][0] for item in map(shown, itertools.islice(items, count))]


def test_each_epoch_ends_with_a_mark_and_the_next_one_begins_after_it():
    data = Passes([2, 1])
    epochs = epochs_of(Source(data, "train_data"))
    assert numbers(epochs, 3) == [0, 1, "END"]
    assert epochs.get_state() == {"pass": 1, "batches": 0}
    assert (data.walks, data.pulled) == (1, 2)  # the first batch was not pulled again, and none of the next epoch
    assert numbers(epochs, 3) == [100, "END", 200]


def test_a_generator_has_one_epoch():
    epochs = epochs_of(Source((batch(i) for i in range(2)), "train_data"))
    assert numbers(epochs, 9) == [0, 1, "END"]


def asked_for():
    """A source that depends on the controls, and what it was given."""
    calls = []

    def data(epoch, controls):
        calls.append((epoch, controls["level"]))
        return [batch(epoch)]

    return CallableSource(data, "train_data", batch_size=None, shuffle=False, seed=0, steps_per_epoch=None), calls


def test_an_epoch_waits_until_the_run_has_reached_it():
    source, calls = asked_for()
    controls = EpochControls(0, {"level": 1}, midway=False)
    epochs = epochs_of(source, controls, {"level": 1.0})
    controls.begin()
    assert numbers(epochs, 2) == [0, "END"]
    found = []
    thread = threading.Thread(target=lambda: found.extend(numbers(epochs, 1)))
    thread.start()
    controls.reach(1, {"level": 5})
    controls.reach(1, {"level": 7})  # what counts is the last that is known when it begins
    controls.begin()
    controls.reach(1, {"level": 9})
    thread.join(PATIENCE)
    assert found == [1]
    assert calls == [(0, 1.0), (1, 7.0)]
    assert controls.current == {"level": 7.0}
    controls.end()
    assert numbers(epochs, 2) == ["END"]


@pytest.mark.parametrize(("changed", "walks"), [(1, 1), (2, 2)])
def test_the_first_epoch_is_opened_again_where_a_control_was_set_before_it(changed, walks):
    source, calls = asked_for()
    controls = EpochControls(0, {"level": 1}, midway=False)
    epochs = epochs_of(source, controls, {"level": 1.0})
    controls.reach(0, {"level": changed})
    controls.begin()
    assert numbers(epochs, 1) == [0]
    assert calls == [(0, 1.0), (0, 2.0)][:walks]


def test_the_controls_of_an_epoch_that_was_resumed_midway_stay():
    controls = EpochControls(3, {"level": 1}, midway=True)
    controls.reach(3, {"level": 2})
    controls.begin()
    controls.begin()
    controls.end()
    assert [controls.wait(), controls.wait()] == [{"level": 1.0}, None]
    controls.reach(4, {"level": 2})
    assert controls.current == {"level": 2.0}
