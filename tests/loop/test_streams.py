"""Streams of batches: the same run as arrays give, and no more is pulled than is needed."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from loop._runs import fit, loss_fn, make_data

import jaxcb as jc

EXECUTORS = ("looped", "stepped")
X, Y = make_data()
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 70, 16)]  # 4 of 16 and one of 6


class Anew:
    """Can be walked again and again."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Tensor:
    """As a tensor of another library."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape

    def __array__(self, dtype=None, copy=None):
        return self.array


def plain(executor, data=BATCHES, **changes):
    changes = {"epochs": 2, "callbacks": [], "validation_data": None, "batch_size": None} | changes
    if not isinstance(data, tuple | dict):
        changes = {"steps_per_execution": 3} | changes
    return fit(executor, data=data, **changes)


def same_bits(a, b):
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def threads():
    return [t for t in threading.enumerate() if t.name == "jaxcb-data"]


@pytest.fixture(scope="module", params=EXECUTORS)
def listed(request):
    return request.param, plain(request.param)


def test_a_stream_trains_as_the_same_batches_given_as_arrays(listed):
    executor, run = listed
    arrays = plain(executor, (X, Y), batch_size=16, shuffle=False)
    assert int(run.state.step) == int(arrays.state.step) == 10
    assert run.history.keys() == arrays.history.keys()
    np.testing.assert_array_equal(run.history.step, [5, 10])
    for name in arrays.history:
        np.testing.assert_allclose(run.history[name], arrays.history[name], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), run.params, arrays.params)


KINDS = {
    "walked anew": lambda: (Anew(BATCHES), {}),
    "one long generator": lambda: ((b for _ in range(2) for b in BATCHES), {"steps_per_epoch": 5}),
    "endless": lambda: (itertools.cycle(BATCHES), {"steps_per_epoch": 5}),
    "lists of arrays": lambda: ([list(b) for b in BATCHES], {}),
    "tensors": lambda: ([tuple(Tensor(a) for a in b) for b in BATCHES], {}),
    "wide dtypes": lambda: ([(x.astype(np.float64), y.astype(np.float64)) for x, y in BATCHES], {}),
    "jax arrays": lambda: ([tuple(jnp.asarray(a) for a in b) for b in BATCHES], {}),
    "steps in place of epochs": lambda: (BATCHES, {"epochs": None, "steps": 10}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_stream_gives_the_same_bits(listed, kind):
    executor, run = listed
    data, changes = KINDS[kind]()
    other = plain(executor, data, **changes)
    assert same_bits(run.params, other.params)
    assert same_bits(dict(run.history), dict(other.history))
    assert not threads()


def test_tensors_of_another_library_are_arrays_too():
    own = plain("looped", (X, Y), batch_size=16, epochs=1)
    other = plain("looped", (Tensor(X), Tensor(Y)), batch_size=16, epochs=1)
    assert same_bits(own.params, other.params)


def test_a_generator_serves_one_epoch():
    run = plain("looped", (b for b in BATCHES), epochs=1)
    assert run.history.step.tolist() == [5]


def test_batches_may_be_dicts_and_integers():
    def dict_loss(params, batch):
        assert batch["x"].dtype == jnp.int32
        return loss_fn(params, (batch["x"].astype(jnp.float32), batch["y"]))

    batches = [{"x": np.round(x).astype(np.int64), "y": y} for x, y in BATCHES]
    run = plain("looped", batches, loss_fn=dict_loss, epochs=1)
    assert int(run.state.step) == 5


def test_a_smaller_last_batch_can_be_dropped(listed):
    executor, _ = listed
    stream = plain(executor, remainder="drop")
    arrays = plain(executor, (X, Y), batch_size=16, shuffle=False, remainder="drop")
    assert stream.history.step.tolist() == arrays.history.step.tolist() == [4, 8]
    np.testing.assert_allclose(stream.history["loss"], arrays.history["loss"], rtol=1e-5)


# Which batch is trained on when: batches that carry their number


class Seen(jc.LogAction):
    number: float


SEEN = []


@jc.writer(Seen)
class SeenWriter(jc.Writer):
    def write(self, record):
        SEEN.append((record.epoch, int(record.action.number)))


class Watch(jc.Callback):
    """Records each step's batch."""

    def on_batch_end(self, state, metrics):
        return state, Seen(metrics["number"])


class CallAt(jc.Callback):
    """Calls a function after steps that `every` divides."""

    every: int
    fn: object = jc.static()

    def on_batch_end(self, state, metrics):
        return state, jc.Call(self.fn, when=metrics.step % self.every == 0)


def numbered(count, start=0):
    return [np.full((2, 1), float(i), np.float32) for i in range(start, start + count)]


def number_loss(params, batch):
    return jnp.mean((params["w"] * 0.01 * batch) ** 2), {"number": batch[0, 0]}


def watch(executor, data, callbacks=(), **changes):
    """Runs over numbered batches; returns the (epoch, number) of each step."""
    SEEN.clear()
    changes = {"steps_per_execution": 3, "verbose": 0, "optimizer": optax.sgd, "learning_rate": 0.1} | changes
    jc.fit({"w": jnp.ones(())}, number_loss, data, executor=executor, callbacks=[Watch(), *callbacks], **changes)
    assert not threads()
    return list(SEEN)


def in_epochs(numbers, length):
    return [(i // length, n) for i, n in enumerate(numbers)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_steps_per_epoch_cuts_a_stream_and_loses_no_batch(executor):
    numbers = [*range(5), *range(5), 0, 1]
    assert watch(executor, numbered(5), steps_per_epoch=4, epochs=3) == in_epochs(numbers, 4)
    assert watch(executor, Anew(numbered(5)), steps_per_epoch=7, steps=12) == in_epochs(numbers, 7)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("changes", [{"epochs": 2}, {"steps_per_epoch": 4, "steps": 11}], ids=["passes", "cut"])
def test_after_a_host_action_amid_a_chunk_the_next_batch_is_the_right_one(executor, every, changes):
    called = []
    run = watch(executor, numbered(5), [CallAt(every, lambda run: called.append(run.step))], **changes)
    steps = changes.get("steps", 10)
    length = changes.get("steps_per_epoch", 5)
    assert run == in_epochs([i % 5 for i in range(steps)], length)
    assert called == list(range(every, steps + 1, every))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_full_ring_ends_a_stretch_and_loses_neither_record_nor_batch(executor, monkeypatch):
    monkeypatch.setattr("jaxcb.loop._rings._MOST", 2)
    numbers = [i % 7 for i in range(21)]
    assert watch(executor, numbered(7), epochs=3, steps_per_execution=4) == in_epochs(numbers, 7)
    resident = np.concatenate(numbered(7))
    assert watch(executor, resident, epochs=3, batch_size=2, shuffle=False) == in_epochs(numbers, 7)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_epoch_of_one_batch_is_an_epoch(executor):
    assert watch(executor, numbered(1), epochs=5) == [(e, 0) for e in range(5)]


def test_a_smaller_batch_may_end_an_epoch_that_steps_per_epoch_cuts():
    small = np.full((1, 1), 9.0, np.float32)
    stream = itertools.cycle([*numbered(2), small])
    assert watch("looped", stream, steps_per_epoch=3, epochs=2) == in_epochs([0, 1, 9, 0, 1, 9], 3)


def test_only_a_bounded_number_of_batches_is_pulled_ahead():
    pulled, ahead = [0], []

    def stream():
        for batch in itertools.cycle(numbered(5)):
            pulled[0] += 1
            yield batch

    watch("looped", stream(), [CallAt(1, lambda run: ahead.append(pulled[0] - run.step))], steps=60, steps_per_epoch=30)
    # chunks of 3: two under way, two that wait, one in the thread's hand, and a batch
    assert max(ahead) <= 3 * 5 + 1
    assert pulled[0] <= 60 + 3 * 5 + 1


@pytest.mark.parametrize("changes", [{"steps": 6}, {"steps_per_epoch": 3, "epochs": 2}], ids=str)
def test_a_live_stream_is_not_asked_for_a_batch_beyond_the_last(changes):
    def stream():
        yield from numbered(6)
        raise AssertionError("one too many")

    assert [n for _, n in watch("looped", stream(), **changes)] == list(range(6))


class Mine(Exception):
    pass


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_error_in_the_iterable_reaches_the_caller_and_the_thread_ends(executor):
    def stream():
        yield from numbered(4)
        raise Mine("the disk is gone")

    with pytest.raises(Mine, match="the disk is gone"):
        watch(executor, stream(), epochs=1)
    assert not threads()


def test_an_error_in_a_host_function_ends_the_thread():
    def fails(run):
        raise Mine("at once")

    with pytest.raises(Mine):
        watch("looped", itertools.cycle(numbered(5)), [CallAt(2, fails)], steps=100, steps_per_epoch=10)
    assert not threads()


def test_a_generator_that_is_used_up_says_when():
    with pytest.raises(jc.DataError, match=r"generator that was used up after 5 batches, in epoch 2.*iterated again"):
        watch("looped", (b for b in numbered(5)), steps_per_epoch=4, epochs=2)
    assert not threads()


class Once:
    """Says that it can be walked again, and cannot."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self.batches


def test_an_iterable_that_does_not_start_anew_says_so():
    with pytest.raises(jc.DataError, match=r"Once.*gave no batch when it was walked again"):
        watch("looped", Once(numbered(5)), epochs=2)


RAGGED = {
    "a smaller one amid the pass": (
        [*numbered(1), np.zeros((1, 1), np.float32), *numbered(1)],
        "batch 2 .* is smaller",
    ),
    "a larger one": ([*numbered(1), np.zeros((3, 1), np.float32)], r"ragged batches: batch 2 .*\(3, 1\).*\(2, 1\)"),
    "a wider one": ([*numbered(1), np.zeros((2, 4), np.float32)], r"ragged batches: batch 2 .*\(2, 4\).*\(2, 1\)"),
    "another structure": ([*numbered(1), (np.zeros((2, 1), np.float32),)], "batch 2 of train_data has the structure"),
    "another dtype": ([*numbered(1), np.zeros((2, 1), np.int32)], "batch 2 .* dtype int32, the first one float32"),
    "no array": ([*numbered(1), np.array([["a"], ["b"]])], "batch 2 .* dtype <U1"),
}


@pytest.mark.parametrize("case", RAGGED)
def test_a_batch_unlike_the_first_is_named(case):
    data, message = RAGGED[case]
    with pytest.raises(jc.DataError, match=message):
        watch("looped", Anew(data), epochs=2)
    assert not threads()
