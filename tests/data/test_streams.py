"""Streams of batches: the same run as arrays give, and no more is pulled than is needed."""

import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _patience import PATIENCE, until
from loop._runs import fit, loss_fn, make_data
from loop._watch import SEEN, CallAt, Watch, in_epochs, number_loss, numbered, threads, watch

import jaxcb as jc
from jaxcb._src.data.inputs import ValidationConfig
from jaxcb._src.data.validation import validation_sets

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


@pytest.fixture(scope="module", params=EXECUTORS)
def listed(request):
    return request.param, plain(request.param)


@pytest.mark.everyday(1)
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


@pytest.mark.everyday(8)
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
    stream = plain(executor, drop_remainder=True)
    arrays = plain(executor, (X, Y), batch_size=16, shuffle=False, drop_remainder=True)
    assert stream.history.step.tolist() == arrays.history.step.tolist() == [4, 8]
    np.testing.assert_allclose(stream.history["loss"], arrays.history["loss"], rtol=1e-5)


# Which batch is trained on when


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
    monkeypatch.setattr("jaxcb._src.loop.compiled.record_buffer._MOST", 2)
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
    with pytest.raises(
        jc.errors.DataError, match=r"generator that was used up after 5 batches, in epoch 2.*iterated again"
    ):
        watch("looped", (b for b in numbered(5)), steps_per_epoch=4, epochs=2)
    assert not threads()


class Once:
    """Says that it can be walked again, and cannot."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self.batches


def test_an_iterable_that_does_not_start_anew_says_so():
    with pytest.raises(jc.errors.DataError, match=r"Once.*gave no batch when it was iterated again"):
        watch("looped", Once(numbered(5)), epochs=2)


RAGGED = {
    "a larger one": (
        [*numbered(1), np.zeros((3, 1), np.float32)],
        r"ragged batches: batch 2 .*\(3, 1\).*\(2, 1\).*drop_last=True",
    ),
    "a wider one": ([*numbered(1), np.zeros((2, 4), np.float32)], r"ragged batches: batch 2 .*\(2, 4\).*\(2, 1\)"),
    "another structure": ([*numbered(1), (np.zeros((2, 1), np.float32),)], "batch 2 of train_data has the structure"),
    "another dtype": ([*numbered(1), np.zeros((2, 1), np.int32)], "batch 2 .* dtype int32, the first one float32"),
    "no array": ([*numbered(1), np.array([["a"], ["b"]])], "batch 2 .* dtype <U1"),
}


@pytest.mark.parametrize("case", RAGGED)
def test_a_batch_unlike_the_first_is_named(case):
    data, message = RAGGED[case]
    with pytest.raises(jc.errors.DataError, match=message):
        watch("looped", Anew(data), epochs=2)
    assert not threads()


# A function of the epoch and the controls


class SetAt(jc.Callback):
    """Sets the control `level` at one moment of each epoch to ten times its number, plus `offset`."""

    hook: str = jc.static()
    offset: float = 1.0

    def on_train_begin(self, state, metrics):
        return state, jc.actions.SetControl("level", self.offset, when=self.hook == "on_train_begin")

    def on_batch_end(self, state, metrics):
        return state, jc.actions.SetControl("level", self._value(metrics), when=self.hook == "on_batch_end")

    def on_epoch_end(self, state, metrics):
        return state, jc.actions.SetControl("level", self._value(metrics), when=self.hook == "on_epoch_end")

    def _value(self, metrics):
        return 10.0 * metrics.epoch.astype(jnp.float32) + self.offset


def asked(executor, callbacks, give=lambda epoch: numbered(5, 10 * epoch), **changes):
    """Runs over data that is asked for; returns the calls, and the (epoch, number) of each step."""
    calls = []

    def data(epoch, controls):
        calls.append((epoch, controls))
        return give(epoch)

    changes = {"controls": {"level": 0.5}, "epochs": 3} | changes
    return calls, watch(executor, data, callbacks, **changes)


def levels(*values):
    return [(epoch, {"level": value}) for epoch, value in enumerate(values)]


THREE = [(e, 10 * e + i) for e in range(3) for i in range(5)]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("hook", ["on_epoch_end", "on_batch_end"])
def test_data_is_asked_for_once_an_epoch_with_the_controls_as_they_are_then(executor, hook):
    calls, run = asked(executor, [SetAt(hook)])
    assert calls == levels(0.5, 1.0, 11.0)
    assert run == THREE


@pytest.mark.everyday(3)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    "changes",
    [
        {"steps_per_execution": 1},
        {"steps_per_execution": None},
        {"validation_data": numbered(2)},  # fed by the host at each epoch's end
        {"eval_every": 2, "validation_data": numbered(2)},
        {"give": lambda epoch: (b for b in numbered(5, 10 * epoch))},
        {"give": lambda epoch: np.concatenate(numbered(5, 10 * epoch)), "batch_size": 2, "shuffle": False},
        {"give": lambda epoch: itertools.chain(numbered(5, 10 * epoch), numbered(1)), "steps_per_epoch": 5},
    ],
    ids=["chunks of 1", "measured", "validation", "validation within", "generators", "arrays", "cut"],
)
def test_whatever_stands_between_epochs_the_controls_are_those_of_the_begin(executor, changes):
    called = []
    calls, run = asked(executor, [SetAt("on_epoch_end"), CallAt(5, lambda run: called.append(run.step))], **changes)
    assert calls == levels(0.5, 1.0, 11.0)
    assert run == THREE
    assert called == [5, 10, 15]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_control_set_at_the_begin_of_the_run_is_seen_by_the_first_epoch(executor):
    calls, run = asked(executor, [SetAt("on_train_begin", 7.0)])
    # the first call learns the shapes, before anything has run
    assert calls == [(0, {"level": 0.5}), *levels(7.0, 7.0, 7.0)]
    assert run == THREE


def test_epochs_have_the_length_that_their_data_has():
    calls, run = asked("looped", [], lambda epoch: numbered(epoch + 1), steps=8, epochs=None)
    assert [e for e, _ in calls] == [0, 1, 2, 3]
    assert run == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1)]
    _, run = asked("looped", [], lambda epoch: numbered(2 * epoch + 1), steps_per_epoch=3)
    assert run == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_each_epoch_may_have_shapes_of_its_own(executor):
    _, run = asked(executor, [], lambda epoch: [np.full((epoch + 1, 2 * epoch + 1), i, np.float32) for i in range(3)])
    assert run == [(e, i) for e in range(3) for i in range(3)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_no_data_is_asked_for_after_a_stop(executor):
    stopping = jc.EarlyStopping(lambda m: 0.0 * m["loss"], mode="min", patience=1)
    calls, run = asked(executor, [stopping], epochs=50)
    assert [e for e, _ in calls] == [0, 1]
    assert run == THREE[:10]
    calls, run = asked(executor, [CallAt(5, lambda run: run.stop("enough"))], epochs=50)
    assert [e for e, _ in calls] == [0]
    assert run == THREE[:5]


def test_arrays_that_are_asked_for_have_an_order_of_seed_and_epoch():
    def orders(**changes):
        _, run = asked("looped", [], lambda epoch: np.arange(12.0, dtype=np.float32)[:, None], batch_size=1, **changes)
        return [[n for e, n in run if e == epoch] for epoch in range(3)]

    first = orders(seed=3)
    assert all(sorted(order) == list(range(12)) for order in first)
    assert first[0] != first[1] != first[2]
    assert first == orders(seed=3)
    assert first != orders(seed=4)
    assert orders(shuffle=False) == [list(range(12))] * 3


def test_only_the_epochs_own_data_is_pulled_before_it_is_closed():
    pulled, ended = [], []

    def give(epoch):
        for batch in numbered(5):
            pulled.append(epoch)
            yield batch

    asked("looped", [jc.LambdaCallback(on_epoch_end=lambda epoch, logs: ended.append(max(pulled)))], give)
    assert ended == [0, 1, 2]


NO_FUNCTIONS = {
    "too few": (lambda epoch: BATCHES, TypeError, r"<lambda>\(epoch\), expected one of \(epoch, controls\)"),
    "none": (lambda: BATCHES, TypeError, r"<lambda>\(\), expected one of \(epoch, controls\)"),
    "keywords": (lambda epoch, *, controls: BATCHES, TypeError, "expected one of"),
    "a class": (Anew, TypeError, "the class Anew, expected an instance"),
    "nothing": (lambda e, c: None, jc.errors.DataError, r"train_data\(epoch=0, controls\) returned is a NoneType"),
    "empty": (lambda e, c: [], jc.errors.DataError, "is empty"),
    "endless": (lambda e, c: itertools.cycle(BATCHES), jc.errors.DataError, "endless stream.*steps_per_epoch"),
    "x and y in a list": (lambda e, c: [X, Y], jc.errors.DataError, r"epoch=0.*list of arrays of different shapes"),
}


@pytest.mark.parametrize("case", NO_FUNCTIONS)
def test_a_function_that_cannot_be_asked_says_so_before_the_first_step(case):
    fn, error, message = NO_FUNCTIONS[case]
    with pytest.raises(error, match=message):
        plain("looped", fn)


def test_batch_size_needs_rows_to_cut():
    with pytest.raises(jc.errors.DataError, match=r"batch_size=4 .* but what train_data\(epoch=0, controls\) returned"):
        plain("looped", lambda epoch, controls: BATCHES, batch_size=4)


def notes(error):
    return " ".join(getattr(error, "__notes__", []))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_error_in_the_function_names_the_epoch(executor):
    def fails(epoch):
        if epoch == 1:
            raise Mine("no such file")
        return numbered(5)

    with pytest.raises(Mine) as caught:
        asked(executor, [], fails)
    assert "batch 1 of train_data(epoch=1, controls)" in notes(caught.value)
    assert not threads()

    def fails_within(epoch):
        yield from numbered(2 + epoch)
        raise Mine("the disk is gone")

    with pytest.raises(Mine) as caught:
        asked(executor, [], lambda epoch: fails_within(epoch) if epoch else numbered(5))
    assert "batch 4 of train_data(epoch=1, controls)" in notes(caught.value)
    assert [e for e, _ in SEEN] == [0] * 5 + [1] * 3  # what came before the error was trained on


def test_an_epoch_without_a_batch_is_named():
    with pytest.raises(jc.errors.DataError, match=r"train_data\(epoch=2, controls\) gave no batch\."):
        asked("looped", [], lambda epoch: numbered(2 - epoch))


# The thread


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kind", [Mine, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_iterable_names_the_batch(executor, kind):
    class Fails:
        def __iter__(self):
            yield from numbered(3)
            raise kind

    with pytest.raises(kind) as caught:
        watch(executor, Fails(), epochs=2)
    assert "batch 4 of pass 1 over train_data (Fails)" in notes(caught.value)
    if kind is Mine:  # the batches before it were trained on
        assert SEEN == [(0, 0), (0, 1), (0, 2)]
    assert not threads()


def test_an_error_in_a_validation_set_names_the_batch():
    class Fails:
        walks = 0

        def __iter__(self):
            self.walks += 1
            yield from numbered(3)
            if self.walks == 3:  # the first walk looks at one batch
                raise Mine

    with pytest.raises(Mine) as caught:
        watch("looped", numbered(5), validation_data={"far": Fails()}, epochs=3)
    assert "batch 4 of validation_data (val_far)" in notes(caught.value)
    assert not threads()


@pytest.mark.parametrize("kind", [Mine, KeyboardInterrupt])
def test_a_run_ends_although_its_iterable_never_answers(kind, monkeypatch):
    monkeypatch.setattr("jaxcb._src.data.stream.prefetch._JOIN_SECONDS", 0.2)
    answer, pulled = threading.Event(), []

    def stream():
        for i, batch in enumerate(numbered(100)):
            pulled.append(i)
            if i == 20:
                assert answer.wait(PATIENCE)
            yield batch

    def fails(run):
        until(lambda: pulled[-1] == 20)  # the thread waits in the iterator by then
        raise kind

    thread = None
    try:
        with pytest.raises(kind):
            jc.fit(
                {"w": jnp.ones(())},
                number_loss,
                stream(),
                optimizer=optax.sgd(0.1),
                steps=100,
                steps_per_epoch=100,
                callbacks=[CallAt(15, fails)],
                verbose=0,
                execution=jc.Execution(steps_per_execution=3),
            )
        (thread,) = threads()
    finally:
        answer.set()
    assert thread is not None
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert pulled[-1] <= 21  # and once it answers it is asked for nothing more


def test_a_run_that_waits_for_its_epoch_can_be_ended():
    def fails(run):
        raise Mine

    with pytest.raises(Mine):
        asked("looped", [CallAt(5, fails)])
    assert not threads()


def test_a_buffer_that_is_used_again_spoils_no_batch():
    buffer = np.zeros(32 * 64 + 64, np.uint8)
    start = -buffer.ctypes.data % 64  # so aligned, a device may take the memory itself
    buffer = buffer[start : start + 8 * 64].view(np.float32).reshape(2, 64)

    class Reuses:
        def __iter__(self):
            for i in range(40):
                buffer[:] = i
                yield buffer

    (own,) = validation_sets(ValidationConfig(data=Reuses())).values()
    assert [float(batch[0, 0]) for batch in [*own]] == [*range(40)]  # all are kept, as if none were used yet
    for executor in EXECUTORS:
        SEEN.clear()
        jc.fit(
            {"w": jnp.ones(())},
            lambda params, batch: (jnp.mean(params["w"] * batch), {"number": batch[0, 0]}),
            Reuses(),
            optimizer=optax.sgd(0.0),
            epochs=2,
            callbacks=[Watch()],
            verbose=0,
            execution=jc.Execution(executor=executor),
        )
        assert [n for _, n in SEEN] == [*range(40), *range(40)]


def test_the_thread_has_the_settings_of_the_run():
    wide = [(x.astype(np.float64), y.astype(np.float64)) for x, y in BATCHES]

    def wide_loss(params, batch):
        assert batch[0].dtype == jnp.float64
        return loss_fn(params, jax.tree.map(lambda x: x.astype(jnp.float32), batch))

    with jax.enable_x64(True):
        run = plain("stepped", wide, loss_fn=wide_loss, epochs=1)
    assert int(run.state.step) == 5
