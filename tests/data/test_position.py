"""Where data stands: a feed that is made anew at a position goes on with the batch after it, bit for bit."""

import functools
import json
import random

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from loop._watch import threads

import jaxcb as jc
from jaxcb._src.data.feed import NOT_READY
from jaxcb._src.data.inputs import DataConfig
from jaxcb._src.data.pipeline import open_feed, plan_data
from jaxcb._src.data.progress import UNBOUNDED, FeedStart
from jaxcb._src.data.stream.epochs import NotSerializableError, as_json, from_json
from jaxcb._src.loop.compiled.state import Status

X = np.arange(22, dtype=np.float32).reshape(11, 2)
Y = np.arange(11, dtype=np.int32)
ROWS = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]


def batches(order=range(11), size=2):
    """Five batches of two rows, and one of one."""
    order = list(order)
    return [(X[order[i : i + size]], Y[order[i : i + size]]) for i in range(0, len(order), size)]


def shuffled(seed):
    order = list(range(11))
    random.Random(seed).shuffle(order)
    return order


FULL = [batch for seed in range(4) for batch in batches(shuffled(seed))[:5]]  # 20 of two rows


# Data as users have it: made anew by each process


class Anew:
    """Can be walked again and again, and says nothing of where it stands."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return iter(self.data)


class Loader:
    """Shuffles by the epoch that it was told."""

    def __init__(self):
        self.epoch, self.told = 0, []

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.told.append(epoch)

    def __iter__(self):
        return iter(batches(shuffled(self.epoch)))


class Own:
    """An iterator that says where it stands. It notes what it is asked."""

    def __init__(self, data, state=lambda n: {"next": n}, count=lambda state: state["next"]):
        self.data, self.next, self.asked = list(data), 0, []
        self.state, self.count = state, count

    def __iter__(self):
        return self

    def __next__(self):
        self.asked.append("next")
        if self.next == len(self.data):
            raise StopIteration
        self.next += 1
        return self.data[self.next - 1]

    def get_state(self):
        self.asked.append("get")
        return self.state(self.next)

    def set_state(self, state):
        self.asked.append("set")
        self.next = self.count(state)


class Drawn:
    """Draws rows at random; its state is that of the generator, which holds tuples."""

    def __init__(self):
        self.random, self.left = random.Random(0), 40

    def __iter__(self):
        return self

    def __next__(self):
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        return batches(self.random.sample(range(11), 2))[0]

    def get_state(self):
        return self.random.getstate(), self.left

    def set_state(self, state):
        own, self.left = state
        self.random.setstate(own)


class Owned:
    """Can be walked again and again, by iterators that say where they stand."""

    def __init__(self):
        self.walks = 0

    def __iter__(self):
        self.walks += 1
        return Own(batches())


class Mutable(Own):
    """Its state is one dict, which it changes."""

    def __init__(self, data):
        super().__init__(data)
        self.own = {"next": 0}

    def get_state(self):
        self.own["next"] = self.next
        return self.own


def lesson(epoch, controls):
    """Depends on all that it is told."""
    return [(x + np.float32(controls["level"]), y + np.int32(epoch)) for x, y in batches()]


def grain_rows():
    return pytest.importorskip("grain").MapDataset.source(ROWS)


def grain_iter(rows):
    """Reads little ahead: what is endless and short is read again and again else."""
    return rows.to_iter_dataset(pytest.importorskip("grain").ReadOptions(num_threads=1, prefetch_buffer_size=3))


def grain_loader():
    grain = pytest.importorskip("grain")
    sampler = grain.samplers.IndexSampler(
        11, shuffle=True, seed=3, num_epochs=None, shard_options=grain.sharding.NoSharding()
    )
    return grain.DataLoader(
        data_source=ROWS,
        sampler=sampler,
        operations=[grain.transforms.Batch(2)],
        worker_count=0,
        read_options=grain.ReadOptions(num_threads=1, prefetch_buffer_size=3),
    )


def grain_window():
    grain = pytest.importorskip("grain")
    rows = grain.experimental.WindowShuffleIterDataset(grain_iter(grain_rows()), window_size=4, seed=1)
    return rows.batch(2)


@functools.cache
def table():
    return pytest.importorskip("datasets").Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()})


CUT = {"steps_per_epoch": 4}
KINDS = {
    "list": (batches, {}),
    "list, cut": (batches, CUT),
    "list, smaller ones dropped": (batches, {"drop_remainder": True}),
    "list, counted in steps": (batches, {"epochs": None, "steps": 10}),
    "walked anew": (lambda: Anew(batches()), {}),
    "walked anew, cut long": (lambda: Anew(batches()), {"steps_per_epoch": 9, "epochs": 2}),
    "generator": (lambda: (b for b in FULL), {**CUT, "epochs": None, "steps": 15}),
    "generator of one epoch": (lambda: (b for b in batches()), {"epochs": 1}),
    "told the epoch": (Loader, {}),
    "told the epoch, cut": (Loader, CUT),
    "function": (lambda: lesson, {}),
    "function, cut": (lambda: lesson, CUT),
    "function, counted in steps": (lambda: lesson, {"epochs": None, "steps": 8}),
    "function of generators": (lambda: lambda e, c: (b for b in lesson(e, c)), {}),
    "function of arrays": (lambda: lambda e, c: (X + c["level"], Y), {"batch_size": 3, "steps_per_epoch": 3}),
    "function of shapes": (lambda: lambda e, c: batches(size=2 + e), {}),
    "function of iterators": (lambda: lambda e, c: Own(lesson(e, c)), {}),
    "own": (Owned, {}),
    "own, cut": (Owned, CUT),
    "own stream": (lambda: Own(FULL), {**CUT, "epochs": None, "steps": 15}),
    "own stream of one epoch": (lambda: Own(batches()), {"epochs": 1}),
    "own state in bytes": (lambda: Own(FULL, lambda n: str(n).encode(), int), {**CUT, "steps": 15}),
    "own state in tuples": (Drawn, CUT),
    "own state that changes": (lambda: Mutable(FULL), CUT),
    "Hugging Face": (table, {"batch_size": 3}),
    "Hugging Face, cut": (table, {"batch_size": 3, "steps_per_epoch": 3}),
    "Hugging Face iterable": (lambda: table().to_iterable_dataset().shuffle(seed=1, buffer_size=3).batch(2), {}),
    "grain map": (lambda: grain_rows().shuffle(seed=1).batch(2), {}),
    "grain map, cut": (lambda: grain_rows().shuffle(seed=1).batch(2), CUT),
    "grain iter": (lambda: grain_iter(grain_rows().shuffle(seed=1)).batch(2), {}),
    "grain window": (grain_window, CUT),
    "grain stream": (lambda: iter(grain_iter(grain_rows().shuffle(seed=1).repeat()).batch(2)), CUT),
    "grain loader": (grain_loader, CUT),
}


def fail(text):
    """These kinds all resume with the batches that they should have."""
    raise AssertionError(text)


def plan_of(data, start=None, say=None, controls=None, **how):
    config = DataConfig(seed=5, steps_per_execution=3, **{"epochs": 3, "resumes": True, **how})
    return plan_data(data, config, start=start, say=say, warn=fail, controls=controls or {"level": np.float32(0)})


def feed_of(data, start=None, say=None, stacked=True, **how):
    return open_feed(plan_of(data, start, say, **how), stacked=stacked)


def next_of(feed):
    chunk = feed.next(UNBOUNDED, wait=True)
    assert chunk is not NOT_READY
    return chunk


def status(epoch, cursor, step, over=False):
    controls = {"level": np.float32(10 * epoch + step)}
    fields = dict.fromkeys(("evaluated", "stop", "yielded", "awaits", "alive"), 0)
    return Status(**fields, epoch=epoch, cursor=cursor, step=step, over=over, window={}, controls=controls)


def bits(batch):
    return [(str(x.dtype), x.shape, x.tobytes()) for x in map(np.asarray, jax.tree.leaves(batch))]


def always(moment):
    return True


def never(moment):
    return False


def drive(data, how, stacked, start=None, confirms=always, moments=UNBOUNDED, say=None):
    """Uses a feed as a run does, up to a moment. One comes after each batch, and after each epoch's end.

    Returns what happened, how much of it had happened at the last moment confirmed, and where that was.
    """
    feed = feed_of(data, start, say, stacked, **how, **({"controls": {"level": -1}} if start else {}))
    start = start or FeedStart()
    (epoch, cursor, step), moment = start[:3], 0
    epochs, steps = how.get("epochs", 3) or UNBOUNDED, how.get("steps") or UNBOUNDED
    happened, saved = [], (0, start)

    def over():
        return cursor == 0 and (epoch >= epochs or step >= steps)

    def passed():
        """Tells whether a moment was confirmed, so that batches that were taken are given again."""
        nonlocal moment, saved
        moment += 1
        if not confirms(moment) and not (cursor == 0 and callable(data)):
            return False
        feed.confirm(status(epoch, cursor, step, over()), again=True)
        saved = len(happened), FeedStart(epoch, cursor, step, json.loads(json.dumps(feed.get_state())))
        return True

    try:
        feed.confirm(status(epoch, cursor, step))
        while not over() and moment < moments:
            chunk = next_of(feed)
            assert chunk is not None
            assert chunk.epoch == epoch
            assert chunk.base <= cursor <= chunk.base + chunk.size
            own, again = jax.device_get(chunk.data if stacked else chunk.batches), False
            while cursor < chunk.base + chunk.size and not again and moment < moments:
                i = cursor - chunk.base
                batch = jax.tree.map(lambda x, i=i: x[i], own) if stacked else own[i]
                happened.append(("batch", epoch, cursor, bits(batch)))
                cursor, step = cursor + 1, step + 1
                again = passed()
            if again or moment == moments:
                continue
            assert chunk.closes == (cursor >= chunk.epoch_len or step >= steps)
            if chunk.closes:
                happened.append(("end", epoch, cursor))
                epoch, cursor = epoch + 1, 0
                passed()
    finally:
        feed.close()
    assert not threads()
    return happened, *saved


@functools.cache
def whole(kind, stacked):
    make, how = KINDS[kind]
    return drive(make(), how, stacked, confirms=never)[0]


@pytest.mark.everyday(10)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6)
@given(data=st.data())
def test_a_feed_goes_on_where_the_run_was_confirmed(kind, data):
    make, how = KINDS[kind]
    stacked = data.draw(st.booleans(), "stacked")
    expected = whole(kind, stacked)
    happened, start = [], None
    for moments in data.draw(st.lists(st.integers(1, len(expected)), min_size=1, max_size=3), "kills"):
        seed, often = data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0.2, 0.6, 1.0]))
        draws = random.Random(seed)
        own, done, start = drive(make(), how, stacked, start, lambda _: draws.random() < often, moments)  # noqa: B023
        happened += own[:done]
    happened += drive(make(), how, stacked, start)[0]
    assert happened == expected


@pytest.mark.everyday(8)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith(("Hugging", "grain"))])
def test_each_moment_can_be_gone_on_from(kind):
    make, how = KINDS[kind]
    expected = whole(kind, False)
    for moments in range(1, len(expected) + 1):
        own, _, start = drive(make(), how, moments % 2 == 1, moments=moments)
        assert own + drive(make(), how, moments % 2 == 0, start, never)[0] == expected


# What is pulled, and what is asked


def stand(data, how, moments):
    return drive(data, how, False, moments=moments)[2]


def rest(data, how, start, **more):
    return drive(data, how, False, start, **more)[0]


def test_an_iterator_is_asked_after_each_batch_before_the_next_one_is_pulled():
    own = Own(FULL)
    drive(own, {"epochs": 1}, True)  # looks ahead for the end of the pass
    assert own.asked == ["next", "get"] * 20 + ["next"]
    own = Own(FULL)
    drive(own, {"steps_per_epoch": 5, "steps": 10}, True)
    assert own.asked == ["next", "get"] * 10


@pytest.mark.parametrize("how", [{"steps_per_epoch": 5, "steps": 15}, {"steps": 15}], ids=["cut", "one epoch"])
def test_neither_a_batch_done_nor_one_too_many_is_pulled(how):
    start, said = stand(Own(FULL), {**how, "epochs": None}, 9), []
    own = Own(FULL)
    rest(own, {**how, "epochs": None}, start, say=said.append)
    assert own.asked == ["next", "get", "set"] + ["next", "get"] * (15 - start.step)  # the first one for its shapes
    assert said == []


def test_an_iterable_is_walked_once_for_a_resumed_pass():
    data, start = Owned(), stand(Owned(), {}, 9)
    assert start.position == {"pass": 1, "batches": 2, "iterator": {"next": 2}}
    rest(data, {}, start)
    assert data.walks == 2  # that pass and the third


def test_what_is_passed_over_is_said_once():
    start, said = stand(Anew(batches()), {}, 9), []
    assert start.position.items() >= {"pass": 1, "batches": 2}.items()
    rest(Anew(batches()), {}, start, say=said.append)
    (line,) = said
    assert line.startswith("jaxcb: pass 2 over train_data (Anew) starts again and 2 batches are skipped")
    assert "get_state and set_state" in line


@pytest.mark.parametrize("moments", [7, 21], ids=["between epochs", "at the end"])
def test_nothing_is_said_where_nothing_is_passed_over(moments):
    start, said = stand(Anew(batches()), {}, moments), []
    rest(Anew(batches()), {}, start, say=said.append)
    assert said == []


def test_a_loader_is_told_the_pass_that_it_is_in():
    start, data = stand(Loader(), {}, 16), Loader()
    assert start.epoch == 2
    rest(data, {}, start)
    assert data.told == [2]


def test_a_function_is_asked_for_the_epoch_with_the_controls_that_it_began_with():
    calls = []

    def data(epoch, controls):
        calls.append((epoch, controls["level"]))
        return lesson(epoch, controls)

    start = stand(lesson, {}, 9)
    assert (start.epoch, start.cursor, start.position["controls"]) == (1, 2, {"level": 16.0})  # epoch 1, 6 steps
    rest(data, {}, start)
    assert calls == [(1, 16.0), (2, 32.0)]


class Refuses(Own):
    def get_state(self):
        raise NotImplementedError


class Opaque(Own):
    def get_state(self):
        return object()


@pytest.mark.parametrize("kind", [Refuses, Opaque])
def test_an_iterator_whose_state_cannot_be_kept_is_passed_over(kind, monkeypatch):
    monkeypatch.setitem(globals(), "fail", lambda text: None)  # it is said at the first batch, too
    start, said = stand(kind(FULL), CUT, 9), []
    assert start.position.items() >= {"pass": 0, "batches": 8}.items()
    assert rest(kind(FULL), CUT, start, say=said.append) == whole_of(kind(FULL), CUT)[9:]
    assert len(said) == 1


def whole_of(data, how):
    return drive(data, how, False, confirms=never)[0]


def test_an_iterator_that_has_come_to_say_where_it_stands_is_passed_over_once():
    start = stand((b for b in FULL), CUT, 9)
    own = Own(FULL)
    assert rest(own, CUT, start) == whole_of(Own(FULL), CUT)[9:]
    assert "set" not in own.asked


# What a run must not see


@pytest.mark.parametrize("kind", ["list", "own", "function of arrays", "Hugging Face", "generator of one epoch"])
def test_shapes_are_those_of_a_new_run_although_the_next_batch_is_the_smaller_one(kind):
    make, how = KINDS[kind]
    new = plan_of(make(), **how)
    last = 3 if kind.startswith(("Hugging", "function")) else 5
    start = stand(make(), how, last)
    plan = plan_of(make(), start, **how)
    assert plan.spec == new.spec
    feed = open_feed(plan)
    chunk = next_of(feed)
    feed.close()
    assert chunk is not None
    assert (chunk.epoch, chunk.base, chunk.step) == (0, last, last)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_run_that_was_resumed_before_its_epoch_was_closed_learns_that_it_ends(stacked):
    for how in ({}, {"steps_per_epoch": 6}, {"epochs": None, "steps": 6}):
        start = stand(batches(), how, 6)
        assert (start.epoch, start.cursor) == (0, 6)
        feed = feed_of(batches(), start, stacked=stacked, **how)
        chunk, after = next_of(feed), next_of(feed)
        feed.close()
        assert chunk is not None
        assert (chunk.epoch, chunk.base, chunk.size, chunk.closes) == (0, 6, 0, True)
        if stacked:  # as a full one: no program is compiled for it
            new = feed_of(batches(), **how)
            first = next_of(new)
            new.close()
            assert first is not None
            assert jax.tree.map(np.shape, chunk.data) == jax.tree.map(np.shape, first.data)
        if how.get("steps"):
            assert after is None
        else:
            assert chunk.epoch_len == 6
            assert after is not None
            assert (after.epoch, after.base) == (1, 0)


def test_a_run_of_more_epochs_goes_on_with_the_pass_after():
    long = whole_of(Loader(), {"epochs": 3})
    start = stand(Loader(), {"epochs": 2}, 14)
    assert (start.epoch, start.cursor) == (2, 0)
    assert rest(Loader(), {"epochs": 3}, start) == long[14:]


def test_an_epoch_that_steps_cut_short_is_followed_by_a_pass_from_its_start():
    start = stand(Loader(), {"epochs": None, "steps": 8}, UNBOUNDED)
    assert (start.epoch, start.cursor, start.step) == (2, 0, 8)
    assert rest(Loader(), {"epochs": 3}, start) == whole_of(Loader(), {"epochs": 3})[14:]


def test_nothing_is_pulled_for_a_run_that_has_no_step_left():
    start, data = stand(Own(FULL), {**CUT, "epochs": 2}, 10), Own(FULL)
    assert (start.epoch, start.cursor) == (2, 0)
    feed = feed_of(data, start, **CUT, epochs=2)
    assert next_of(feed) is None
    feed.close()
    assert data.asked == ["next", "get"]


# Data that has changed


CHANGED = {
    "list": (
        batches,
        lambda: batches()[:3],
        {},
        r"pass 1 over train_data \(list\) ended after 3 batches, but the run to resume has trained on 5",
    ),
    "generator": (
        lambda: iter(FULL),
        lambda: iter(FULL[:3]),
        CUT,
        "ended after 3 batches, but the run to resume has trained on 4",
    ),
    "function": (
        lambda: lambda e, c: batches(),
        lambda: lambda e, c: batches()[:3],
        {},
        r"train_data\(epoch=0, controls\) ended after 3 batches, but the run to resume has trained on 5",
    ),
    "rows": (
        lambda: lambda e, c: (X, Y),
        lambda: lambda e, c: (X[:4], Y[:4]),
        {"batch_size": 2},
        "ended after 2 batches, but the run to resume has trained on 5: the data has changed",
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_data_that_ends_before_the_place_that_was_reached_is_an_error(case):
    before, after, how, message = CHANGED[case]
    start = stand(before(), how, 5)
    with pytest.raises(jc.errors.DataError, match=message):
        rest(after(), how, start)
    assert not threads()


def test_a_state_that_an_iterator_refuses_names_the_batch():
    class Checks(Own):
        def set_state(self, state):
            raise KeyError(state["next"])

    with pytest.raises(KeyError) as caught:
        rest(Checks(FULL), CUT, stand(Own(FULL), CUT, 3))
    assert "the state of pass 1 over train_data (Checks) after batch 3 was restored" in caught.value.__notes__[0]


def test_a_control_that_is_new_is_given_as_it_is_and_the_others_as_they_were():
    calls = []
    start = stand(lesson, {}, 2)
    plan_of(lambda e, c: calls.append(c) or lesson(e, c), start, controls={"level": 9, "new": 1})
    assert calls == [{"level": 0.0, "new": 1.0}]


def test_arrays_stand_where_their_epoch_does():
    feed = feed_of((X, Y), FeedStart(1, 2, 8), batch_size=2)
    assert feed.get_state() is None
    # and what was not a stream before goes on as if each epoch had been a pass
    start = FeedStart(1, 2, 8, None)
    assert rest(Loader(), {}, start) == whole_of(Loader(), {})[9:]
    assert rest(iter(FULL), CUT, start._replace(cursor=0, epoch=2)) == whole_of(iter(FULL), CUT)[10:]


# The state of an iterator as JSON

KEPT = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | hnp.arrays(st.sampled_from(["i4", "f4", "u8", "?"]), hnp.array_shapes(min_dims=0, min_side=0), elements={}),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$tuple"), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(KEPT)
@example(np.float32(0.1))
@example((np.uint64(2**64 - 1), {0: b"\x00", "$bytes": ()}))
@example({"$bytes": "no base64"})
@example(random.Random(1).getstate())
@example(np.random.default_rng(1).bit_generator.state)
def test_a_state_goes_through_json_as_it_is(state):
    assert same(from_json(json.loads(json.dumps(as_json(state)))), state)


@pytest.mark.parametrize("state", [object(), {1, 2}, [lambda: 0], np.array([None])], ids=type)
def test_a_state_that_json_cannot_keep_is_refused(state):
    with pytest.raises(NotSerializableError):
        as_json(state)
