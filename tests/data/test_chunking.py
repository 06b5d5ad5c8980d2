"""How a stream's batches become chunks: which ones travel together, and how often each is copied and looked at."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop._watch import SEEN, CallAt, in_epochs, numbered, watch

import jaxcb as jc
from jaxcb._src.data.inputs import DataConfig
from jaxcb._src.data.progress import UNBOUNDED
from jaxcb._src.data.sources import Source
from jaxcb._src.data.stream import batch_spec as _forms
from jaxcb._src.data.stream import staging as _stacks
from jaxcb._src.data.stream.chunking import ChunkLimit
from jaxcb._src.data.stream.stream import chunks_of, plan_stream
from jaxcb._src.sharding.placement import ONE_DEVICE, Placement


class Passes:
    """Each pass has a length of its own, and goes on counting where the one before ended."""

    def __init__(self, lengths, *, smaller_last=False):
        self.lengths, self.smaller_last, self.at = lengths, smaller_last, 0

    def __iter__(self):
        first = sum(self.lengths[: self.at])
        length = self.lengths[self.at]
        self.at += 1
        for batch in numbered(length, first):
            yield batch[:1] if self.smaller_last and batch[0, 0] == first + length - 1 and length > 1 else batch


def all_chunks(data, most=UNBOUNDED, *, steps_per_epoch=None, epochs=None, steps=None):
    """Pulls all chunks of a stream, as its thread does."""
    config = DataConfig(epochs=epochs, steps=steps, steps_per_execution=most)
    plan = plan_stream(Source(data, "train_data"), config, steps_per_epoch=steps_per_epoch, processes=1)
    return list(chunks_of(plan, ONE_DEVICE, _stacks.StagingPool(), ChunkLimit(most), alike=False))


def numbers_in(chunk):
    return np.asarray(chunk.data)[: chunk.size, 0, 0].astype(int).tolist()


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=7),
    most=st.integers(1, 12),
    smaller_last=st.booleans(),
)
def test_chunks_hold_each_batch_once_in_order_and_end_each_epoch_where_it_ends(lengths, most, smaller_last):
    chunks = all_chunks(Passes(lengths, smaller_last=smaller_last), most, epochs=len(lengths))
    assert [n for chunk in chunks for n in numbers_in(chunk)] == list(range(sum(lengths)))
    step, ends = 0, []
    for chunk in chunks:
        assert chunk.step == step
        assert 1 <= chunk.size <= most
        assert len(chunk.positions) == chunk.size
        if chunk.epochs > 1:
            assert chunk.base == 0
            assert chunk.closes
            assert chunk.size == chunk.epochs * chunk.epoch_len
        if chunk.closes:
            ends += [step - chunk.base + chunk.epoch_len * (n + 1) for n in range(chunk.epochs)]
        step += chunk.size
    assert ends == list(itertools.accumulate(lengths))
    if not smaller_last and len(set(lengths)) == 1:  # as many together as there is room for
        together = max(1, most // lengths[0])
        pieces = 1 if most >= lengths[0] else -(-lengths[0] // most)
        assert len(chunks) == -(-len(lengths) // together) * pieces


@given(length=st.integers(1, 5), steps=st.integers(1, 30), most=st.integers(1, 12), live=st.booleans())
def test_epochs_that_are_cut_from_one_stream_travel_together_where_it_is_not_live(length, steps, most, live):
    data = (b for b in numbered(30)) if live else numbered(30)
    chunks = all_chunks(data, most, steps_per_epoch=length, steps=steps)
    assert [n for chunk in chunks for n in numbers_in(chunk)] == list(range(steps))
    assert chunks[-1].closes
    assert sum(chunk.epochs for chunk in chunks if chunk.closes) == -(-steps // length)
    together = max(chunk.epochs for chunk in chunks)
    assert together == (1 if live else max(1, min(most // length, steps // length)))


@pytest.mark.parametrize("how", [{"epochs": 4}, {"steps_per_epoch": 5, "steps": 12}], ids=["passes", "cut"])
def test_batches_around_a_dropped_smaller_one_travel_together(how):
    data = [*numbered(3), np.full((1, 1), 9.0, np.float32)]
    run = watch("looped", data, drop_remainder=True, steps_per_execution=16, **how)
    assert [n for _, n in run] == [0, 1, 2] * 4


def test_batches_of_two_dtypes_that_are_one_on_the_device_are_no_stack():
    data = [(batch.astype(np.float64 if i % 2 else np.float32),) for i, batch in enumerate(numbered(6))]
    assert [n for _, n in watch("looped", (b[0] for b in data), epochs=1, steps_per_execution=16)] == list(range(6))


def test_data_that_follows_the_controls_is_never_of_several_epochs():
    calls = []

    def data(epoch, controls):
        calls.append(epoch)
        return numbered(2)

    watch("looped", data, [jc.LambdaCallback(on_epoch_end=lambda epoch, logs: calls.append("end"))],
          epochs=3, steps_per_execution=8)  # fmt: skip
    assert calls == [0, "end", 1, "end", 2, "end"]


@pytest.mark.parametrize("every", [1, 3, 5, 7])
def test_after_a_host_action_amid_several_epochs_the_next_batch_is_the_right_one(every):
    called = []
    run = watch(
        "looped", numbered(5), [CallAt(every, lambda run: called.append(run.step))], epochs=7, steps_per_execution=16
    )
    assert run == in_epochs([i % 5 for i in range(35)], 5)
    assert called == list(range(every, 36, every))


def test_a_stop_amid_several_epochs_holds():
    run = watch("looped", numbered(5), [CallAt(8, lambda run: run.stop("enough"))], epochs=7, steps_per_execution=16)
    assert run == in_epochs([i % 5 for i in range(8)], 5)


def test_several_epochs_are_validated_each():
    ended = []
    called = jc.LambdaCallback(on_epoch_end=lambda epoch, logs: ended.append(epoch))
    run = watch("looped", numbered(5), [called], epochs=4, steps_per_execution=16, validation_data=numbered(2))
    assert run == in_epochs([i % 5 for i in range(20)], 5)
    assert ended == [0, 1, 2, 3]


class Cut(Exception):
    pass


class SaveAt(jc.Callback):
    """Has the run saved after a step."""

    at: int

    def on_batch_end(self, state, metrics):
        return state, jc.actions.Backup(when=metrics.step == self.at)


@pytest.mark.everyday(2)
@pytest.mark.parametrize("at", [3, 5, 8, 10, 13])
def test_a_run_that_was_cut_short_amid_several_epochs_goes_on_with_the_next_batch(at, tmp_path):
    def fails(run):
        raise Cut

    arguments = {"epochs": 6, "steps_per_execution": 16, "run_dir": tmp_path / "run"}
    with pytest.raises(Cut):
        watch("looped", numbered(5), [SaveAt(at), CallAt(at + 2, fails)], **arguments)
    whole = in_epochs([i % 5 for i in range(30)], 5)
    assert whole[: at + 2] == SEEN
    assert watch("looped", numbered(5), [SaveAt(at), CallAt(100, fails)], resume=True, **arguments) == whole[at:]


def test_short_epochs_are_few_dispatches(monkeypatch):
    placed = []
    put = Placement.put_batch
    monkeypatch.setattr(Placement, "put_batch", lambda *a, **how: placed.append(a) or put(*a, **how))
    watch("looped", numbered(4), epochs=32, steps_per_execution=32)
    assert len(placed) == 32 * 4 // 32


def test_a_batch_is_copied_once_and_looked_at_once_and_memory_goes_round(monkeypatch):
    counts = dict.fromkeys(("stacks", "adds", "moves", "looks"), 0)

    def counted(owner, name, what):
        own = getattr(owner, name)

        def wrapper(*args, **kwargs):
            counts[what] += 1
            return own(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    counted(_stacks.StagingBuffer, "__init__", "stacks")
    counted(_stacks.StagingBuffer, "add", "adds")
    counted(_stacks.StagingBuffer, "extend", "moves")
    counted(_forms.BatchValidator, "_validate_fully", "looks")
    watch("looped", numbered(5), epochs=40, steps_per_execution=10)
    assert counts["adds"] == 200
    assert counts["looks"] == 1
    assert counts["moves"] == 0  # nothing was looked at ahead where epochs end with chunks
    assert counts["stacks"] <= 6  # two under way, two that wait, one in the thread's hand, and one to be given back


def test_memory_goes_round_only_when_the_run_is_done_with_it():
    """All are written anew many times over, while steps that read them are under way."""
    data = [np.full((2, 1 << 14), float(i), np.float32) for i in range(6)]
    assert watch("looped", data, epochs=30, steps_per_execution=4) == in_epochs([i % 6 for i in range(180)], 6)
