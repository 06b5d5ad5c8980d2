"""How processes agree, over a store in memory in place of JAX's; a thread stands for a process."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import pytest
from _patience import PATIENCE

from jaxcb._src.checkpointing.resume import merge_process_positions, position_for_process
from jaxcb._src.data.feed import Chunk
from jaxcb._src.distributed.processes import SINGLE_PROCESS, MultiProcess
from jaxcb._src.loop.host.dispatches import HostDecision, check_same_chunk, chunk_key
from jaxcb.errors import DataError, ProcessError


class Store:
    """What `jaxcb` uses of JAX's distributed client."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            assert allow_overwrite or key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    key_value_set_bytes = key_value_set

    def blocking_key_value_get_bytes(self, key, timeout_in_ms):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: nobody has set it")
            return self.values[key]

    def key_value_try_get(self, key):
        if key not in self.values:
            raise jax.errors.JaxRuntimeError("NOT_FOUND")
        return self.values[key]

    def key_value_dir_get(self, start):
        return [(key, value) for key, value in list(self.values.items()) if key.startswith(start)]

    def key_value_delete(self, key):
        with self.changed:
            for name in [name for name in self.values if name == key or name.startswith(key + "/")]:
                del self.values[name]


def together(count, act, store=None):
    """Runs `act(processes)` as each process, and returns what each came to: a value, or an error."""
    state = SimpleNamespace(client=store or Store(), preemption_sync_manager=None)

    def one(index):
        try:
            with MultiProcess(state, index, count, 1) as processes:
                return act(processes)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_one_process_agrees_with_itself():
    assert SINGLE_PROCESS.broadcast_from_primary(lambda: 3) == 3
    assert SINGLE_PROCESS.gather("own") == ["own"]
    assert not SINGLE_PROCESS.is_multiprocess
    assert SINGLE_PROCESS.is_primary


def test_all_act_on_what_process_0_finds():
    asked = []

    def act(processes):
        return [processes.broadcast_from_primary(lambda i=i: asked.append(i) or (processes.index, i)) for i in range(5)]

    assert together(3, act) == [[(0, i) for i in range(5)]] * 3
    assert asked == list(range(5))  # once each, by process 0


def test_what_all_have_read_is_forgotten():
    store = Store()

    def act(processes):
        for i in range(1000):
            processes.broadcast_from_primary(lambda i=i: i)
            if i % 50 == 0:
                processes.gather(i)  # keeps them together, as steps do

    assert together(2, act, store) == [None, None]
    assert sum("agreed" in key for key in store.values) < 400
    assert not any("gathered" in key for key in store.values)


def test_process_0_gathers():
    assert together(3, lambda p: p.gather(p.index * 10)) == [[0, 10, 20], [10], [20]]


def test_an_error_at_process_0_is_told_where_the_others_wait():
    def act(processes):
        return processes.broadcast_from_primary(lambda: 1 // 0)

    first, second = together(2, act)
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(second, ProcessError)
    assert "process 0 (pid" in str(second)
    assert "ZeroDivisionError" in str(second)


@pytest.mark.long
def test_an_error_elsewhere_reaches_process_0():
    def act(processes):
        if processes.index == 1:
            raise DataError("no more rows")
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            processes.broadcast_from_primary(lambda: time.sleep(0.02))

    first, second, third = together(3, act)
    assert isinstance(second, DataError)
    for other in (first, third):
        assert isinstance(other, ProcessError)
        assert "process 1 (pid" in str(other)
        assert "no more rows" in str(other)


def test_a_signal_elsewhere_reaches_process_0():
    def act(processes):
        if processes.index == 1:
            processes.report_signal(2)
        until = time.monotonic() + PATIENCE
        while processes.broadcast_from_primary(lambda: processes.signum) is None:
            assert time.monotonic() < until
            time.sleep(0.02)

    assert together(2, act) == [None, None]


def test_who_is_missing_when_a_step_fails_is_named():
    def act(processes):
        if processes.index == 1:
            return "killed"  # says no more
        raise jax.errors.JaxRuntimeError("connection reset by peer")

    first, _, third = together(3, act)
    for other in (first, third):
        assert isinstance(other, ProcessError)
        assert "process 1 (pid" in str(other)
        assert "resume=True" in str(other)


def test_orders_rest_for_what_needs_a_pause():
    assert not HostDecision(length=3).needs_idle_device
    assert all(
        orders.needs_idle_device
        for orders in (HostDecision(signum=15), HostDecision(save=True), HostDecision(pack=True))
    )


def test_other_data_than_process_0_s_is_refused():
    chunk = Chunk(None, None, epoch=1, base=4, size=3, epoch_len=9)
    assert check_same_chunk(chunk, chunk_key(chunk), 1) is chunk
    for other in (chunk._replace(size=2), chunk._replace(closes=True), None):
        with pytest.raises(DataError, match="process 1 has other data than process 0"):
            check_same_chunk(other, chunk_key(chunk), 1)


def test_positions_of_as_many_processes_keep_their_own_states():
    own = [{"pass": 1, "batches": 4, "iterator": f"state {i}"} for i in range(2)]
    saved = merge_process_positions(own)
    assert [position_for_process(saved, i, 2) for i in range(2)] == own
    assert [position_for_process(saved, i, 4) for i in range(4)] == [{"pass": 1, "batches": 4}] * 4
    assert position_for_process(own[0], 0, 1) == own[0]
    assert position_for_process(own[0], 1, 2) == {"pass": 1, "batches": 4}
    assert merge_process_positions([None, None]) is None
    assert position_for_process(None, 0, 2) is None
