"""The outbox: order, loss and warnings, whatever the service does."""

import threading

import pytest
from _patience import PATIENCE, until

from jaxcb._src.writers.queue import AsyncSender, RefusedError


class Service:
    """Takes items while it is up."""

    def __init__(self, *, up=True):
        self.up, self.taken, self.attempts = threading.Event(), [], 0
        self.tried = threading.Event()
        if up:
            self.up.set()

    def send(self, items):
        self.attempts += 1
        self.tried.set()
        if not self.up.is_set():
            raise ConnectionRefusedError("down")
        self.taken.extend(items)


def outbox(send, **more):
    warned = []
    given = {"capacity": 100, "pause": 0.01} | more
    return AsyncSender("it", send, warned.append, **given), warned


@pytest.mark.parametrize("batch", [1, 7])
def test_all_arrive_in_order(batch):
    service = Service()
    box, warned = outbox(service.send, batch=batch)
    for i in range(50):
        box.put(i)
    box.close(PATIENCE)
    assert service.taken == list(range(50))
    assert (box.sent, box.lost, warned) == (50, 0, [])


def test_a_service_that_comes_back_gets_everything_and_is_told_once():
    service = Service(up=False)
    box, warned = outbox(service.send)
    box.put(0)
    assert service.tried.wait(PATIENCE)
    until(lambda: box._failure)
    for i in range(1, 5):
        box.put(i)
    assert len(warned) == 1
    assert "it could not be reached: ConnectionRefusedError('down')" in warned[0]
    service.up.set()
    box.close(PATIENCE)
    assert service.taken == [0, 1, 2, 3, 4]
    assert len(warned) == 1


def test_a_full_queue_drops_the_oldest_and_counts():
    service = Service(up=False)
    box, warned = outbox(service.send, capacity=3, pause=10 * PATIENCE)
    box.put(0)
    assert service.tried.wait(PATIENCE)
    until(lambda: box._failure)
    for i in range(1, 6):
        box.put(i)
    service.up.set()
    box.close(PATIENCE)
    assert service.taken == [3, 4, 5]
    assert (box.sent, box.lost) == (3, 3)
    assert warned[-1] == "it did not receive 3 of 6 messages."


def test_what_is_down_to_the_end_is_counted_and_not_waited_for():
    service = Service(up=False)
    box, warned = outbox(service.send, pause=10 * PATIENCE)
    for i in range(4):
        box.put(i)
    box.close(PATIENCE)  # returns at once: the test's own time limit would be felt
    assert (box.sent, box.lost) == (0, 4)
    assert service.attempts <= 2
    assert len(warned) == 2


def test_what_is_refused_is_not_sent_again():
    taken = []

    def send(items):
        if items == [1]:
            raise RefusedError("no")
        taken.extend(items)

    box, warned = outbox(send, pause=10 * PATIENCE)
    for i in range(4):
        box.put(i)
    box.close(PATIENCE)
    assert taken == [0, 2, 3]
    assert (box.sent, box.lost) == (3, 1)
    assert "RefusedError('no')" in warned[0]


def test_a_service_that_hangs_does_not_hold_the_run():
    hang = threading.Event()
    box, warned = outbox(lambda items: hang.wait())
    for i in range(3):
        box.put(i)  # none of these waits
    box.close(0.05)
    assert box.lost == 3
    assert warned == ["it did not receive 3 of 3 messages."]
    hang.set()
    box._thread.join(PATIENCE)
    assert not box._thread.is_alive()


def test_nothing_was_given():
    box, warned = outbox(Service().send)
    box.close(1)
    assert warned == []
