"""A source that cannot resume, or that gives other batches than it should, is noticed."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _arguments import grouped
from _cut import Cut, CutAfter
from hypothesis import given, settings
from hypothesis import strategies as st
from loop._watch import number_loss, numbered, threads

import jaxcb as jc
from jaxcb._src.data.sources import Source
from jaxcb._src.data.stream.source_checks import SourceChecks
from jaxcb._src.storage.fingerprint import batch_fingerprint

EXECUTORS = ("looped", "stepped")
LENGTH = 6
SGD = optax.sgd(0.1)  # one object for all runs: they share what was traced


class Turned:
    """Batches in an order of its own each time, counted from a number that is forgotten, as by a PyTorch loader."""

    def __init__(self, turn=0):
        self.turn = turn

    def __iter__(self):
        batches = numbered(LENGTH)
        first = self.turn % LENGTH
        self.turn += 1
        return iter(batches[first:] + batches[:first])


class Told(Turned):
    """The same, by the number of the epoch."""

    def set_epoch(self, epoch):
        self.turn = epoch


class Same(Turned):
    """The same batches each time."""

    def __iter__(self):
        return iter(numbered(LENGTH, self.turn))


def train(directory, data, executor="looped", at=None, **changes):
    """Trains to the end, or as far as it is cut. It resumes after step `at`."""
    changes = {"epochs": 3, "optimizer": SGD, "verbose": 0, "steps_per_execution": 3} | changes
    callbacks = [] if at is None else [CutAfter(at)]
    given = grouped(executor=executor, callbacks=callbacks, run_dir=directory, resume=True, **changes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", category=RuntimeWarning)
        if at is None:
            jc.fit({"w": jnp.ones(())}, number_loss, data, **given)
        else:
            with pytest.raises(Cut):
                jc.fit({"w": jnp.ones(())}, number_loss, data, **given)
    assert not threads()
    return [str(w.message) for w in caught if "another request" not in str(w.message)]


# The order after a resume


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("at", [2, LENGTH + 5])
def test_another_order_in_the_middle_of_an_epoch_is_noticed(tmp_path, executor, at):
    assert train(tmp_path, Turned(), executor, at) == []
    (said,) = train(tmp_path, Turned(3), executor)
    assert f"pass {at // LENGTH + 1} over train_data (Turned): batch {at % LENGTH} is not the batch that" in said
    assert "get_state and set_state" in said


@pytest.mark.long
def test_a_stream_that_is_cut_into_epochs_is_compared_too(tmp_path):
    how = {"steps_per_epoch": 2, "epochs": 4}
    assert train(tmp_path, Turned(), at=5, **how) == []
    assert train(tmp_path, Turned(), at=6, **how) == []  # the first pass begins again as it should
    assert len(train(tmp_path, Turned(3), **how)) == 1


@pytest.mark.parametrize("executor", EXECUTORS)
def test_orders_that_begin_again_at_an_epochs_start_are_noticed(tmp_path, executor):
    assert train(tmp_path, Turned(), executor, epochs=2) == []
    (said,) = train(tmp_path, Turned(), executor, epochs=3)
    assert "pass 3 over train_data (Turned) begins with the batch of pass 1" in said
    assert "the orders start again" in said


@pytest.mark.long
@settings(max_examples=3, deadline=None)
@given(at=st.integers(1, 3 * LENGTH - 2), executor=st.sampled_from(EXECUTORS), kind=st.sampled_from([Told, Same]))
def test_an_order_of_the_epoch_is_accepted_wherever_the_run_is_cut(tmp_path_factory, at, executor, kind):
    directory = tmp_path_factory.mktemp("run")
    assert train(directory, kind(), executor, at) == []
    assert train(directory, kind(), executor) == []


def test_a_data_set_that_has_grown_in_front_is_noticed(tmp_path):
    train(tmp_path, Same(), at=4)
    assert len(train(tmp_path, Same(1))) == 1


def test_nothing_is_read_for_a_run_without_checkpoints(monkeypatch):
    monkeypatch.setattr("jaxcb._src.data.stream.source_checks.batch_fingerprint", None)
    monkeypatch.setattr("jaxcb._src.data.stream.stream.batch_fingerprint", None)
    jc.fit({"w": jnp.ones(())}, number_loss, Told(), optimizer=SGD, epochs=2, verbose=0)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([(4,), (3, 2), (1, 7), (300, 1200)]),
    dtype=st.sampled_from(["float32", "float64", "int32", "uint8", "bool"]),
    seed=st.integers(0, 9),
)
def test_the_hash_of_a_batch_is_that_of_its_values_wherever_they_are(shape, dtype, seed):
    values = np.random.default_rng(seed).normal(size=shape)
    batch = [(100 * values).astype(dtype), np.arange(len(values))]
    placed = [jnp.asarray(leaf) for leaf in batch]
    assert batch_fingerprint(batch) == batch_fingerprint(placed)
    turned = [leaf[::-1] for leaf in batch]
    if len(values) > 1:
        assert batch_fingerprint(turned) != batch_fingerprint(batch)


# The state of an iterator


class Rows:
    """Without a `repr` of its own."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return np.full((1,), float(index), np.float32)


class Stream:
    """An iterator that compares what its state says of the source, as grain's loader does."""

    def __init__(self, source, strict=True):
        self.source, self.strict, self.next = source, strict, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.next += 1
        return np.full((2, 1), float(self.next), np.float32)

    def get_state(self):
        return {"next": self.next, "about": [("source", repr(self.source).encode())]}

    def set_state(self, state):
        if self.strict and state["about"] != self.get_state()["about"]:
            raise ValueError("the state is of another source")
        self.next = state["next"]


def grain_loader(source):
    grain = pytest.importorskip("grain")
    sampler = grain.samplers.IndexSampler(
        12, shuffle=True, seed=3, num_epochs=None, shard_options=grain.sharding.NoSharding()
    )
    return grain.DataLoader(data_source=source, sampler=sampler, operations=[grain.transforms.Batch(2)], worker_count=0)


@pytest.mark.parametrize("make", [Stream, grain_loader])
def test_a_state_that_no_other_process_can_restore_is_refused_at_the_first_batch(tmp_path, make):
    how = {"epochs": 2, "steps_per_epoch": 3}
    with pytest.raises(jc.errors.DataError, match=r"could not resume.*Rows object at 0x.*Define __repr__ in Rows") as e:
        train(tmp_path, make(Rows()), **how)
    assert "The iterator says: ValueError: " in str(e.value)
    assert not list(tmp_path.rglob("history.csv"))
    # without checkpoints nothing is restored
    given = {"optimizer": SGD, "verbose": 0, **how}
    jc.fit({"w": jnp.ones(())}, number_loss, make(Rows()), **given)


class Named(Rows):
    def __repr__(self):
        return "Named()"


class Unsaved(Turned):
    """An iterator whose state no file can keep."""

    def __iter__(self):
        self.batches = iter(numbered(LENGTH))
        return self

    def __next__(self):
        return next(self.batches)

    def get_state(self):
        return {"function": len}

    def set_state(self, state):
        raise AssertionError("there is none")


def test_a_state_that_no_file_can_keep_is_said_and_the_batches_are_iterated_again(tmp_path):
    with pytest.warns(RuntimeWarning, match="state cannot be saved, since it contains a builtin_function"):
        jc.fit({"w": jnp.ones(())}, number_loss, Unsaved(), optimizer=SGD, epochs=1, verbose=0, run_dir=tmp_path)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("data", [lambda: Stream(Named()), lambda: Stream(Rows(), strict=False)])
def test_a_state_that_can_be_restored_goes_on_at_its_place(tmp_path, data):
    how = {"epochs": 2, "steps_per_epoch": 5}
    train(tmp_path / "whole", data(), **how)
    train(tmp_path / "cut", data(), at=7, **how)
    train(tmp_path / "cut", data(), **how)
    texts = [(tmp_path / name / "history.csv").read_text() for name in ("whole", "cut")]
    assert texts[0] == texts[1]


# Workers that are kept


class Kept:
    """As PyTorch's `DataLoader(dataset, num_workers=1, persistent_workers=True)`: its workers have copies."""

    num_workers, persistent_workers = 1, True

    def __init__(self, dataset):
        self.dataset, self.copy = dataset, Told()
        self.copy.set_epoch(0)

    def __iter__(self):
        if not self.persistent_workers:
            self.copy.set_epoch(self.dataset.epoch)
            return iter(self.copy)
        self.copy.set_epoch(0)
        return iter(self.copy)


class Remembers:
    def set_epoch(self, epoch):
        self.epoch = epoch


def warned_by(data, **changes):
    changes = {"optimizer": SGD, "epochs": 4, "verbose": 0} | changes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jc.fit({"w": jnp.ones(())}, number_loss, data, **changes)
    return [str(w.message) for w in caught]


def test_an_epoch_that_kept_workers_are_not_told_is_noticed():
    said = warned_by(Kept(Remembers()))
    assert "set_epoch of the loader's dataset has no effect" in said[0]
    assert "persistent_workers=False" in said[0]
    assert len(said) == 1


def test_workers_that_are_told_are_not_blamed():
    data = Kept(Remembers())
    data.persistent_workers = False
    assert warned_by(data) == []


def test_a_pass_that_is_begun_again_is_no_repetition():
    said = []
    checks = SourceChecks(Source(Kept(Remembers()), "train_data"), said.append, resumes=False)
    for _ in range(2):
        checks.check_first(0, numbered(1)[0], None, {})
    assert said == []


# Smaller batches


@pytest.mark.long
def test_workers_that_each_end_with_a_smaller_batch_train_as_a_loop_by_hand():
    rng = np.random.default_rng(0)
    sizes = [4, 4, 3, 4, 1, 2]
    batches = [rng.normal(size=(n, 1)).astype(np.float32) for n in sizes]

    def loss_fn(params, batch):
        return jnp.mean((batch * params["w"] - 1.0) ** 2)

    params, tx = {"w": jnp.ones(())}, optax.adam(0.1)
    state, losses = tx.init(params), []
    for _ in range(2):
        for batch in batches:
            loss, grads = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = tx.update(grads, state)
            params = optax.apply_updates(params, updates)
            losses.append(float(loss))
    for executor in EXECUTORS:
        given = grouped(optimizer=tx, epochs=2, verbose=0, executor=executor)
        result = jc.fit({"w": jnp.ones(())}, loss_fn, iter_again(batches), **given)
        np.testing.assert_allclose(result.params["w"], params["w"], rtol=1e-5)
        means = [np.average(losses[i : i + 6], weights=sizes) for i in (0, 6)]
        np.testing.assert_allclose(result.history["loss"], means, rtol=1e-5)  # each row counts once
        given = grouped(optimizer=tx, epochs=2, verbose=0, executor=executor, drop_remainder=True)
        assert jc.fit({"w": jnp.ones(())}, loss_fn, iter_again(batches), **given).state.step == 6


def iter_again(batches):
    class Again:
        def __iter__(self):
            return iter(batches)

    return Again()
