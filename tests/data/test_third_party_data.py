"""Data of other libraries: the real ones where they are installed, and stand-ins that behave as they do."""

import itertools
import random
import re
import subprocess
import sys
from collections import UserDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _arguments import grouped
from loop._watch import SEEN, Watch, threads

import jaxcb as jc
from jaxcb._src.data.inputs import named_sets

EXECUTORS = ("looped", "stepped")
ROWS = 10
STILL = optax.sgd(0.0)  # one object for all runs: they share what was traced
X = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2) / ROWS
Y = np.arange(ROWS, dtype=np.int32)
DICTS = [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]


def loss_fn(params, batch):
    """Reports which rows a batch has, as the sum of 2 ** row."""
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    rows = jnp.sum(2.0 ** y.astype(jnp.float32))
    return jnp.mean((x @ params["w"]) ** 2), {"number": rows, "x": jnp.mean(x)}


def run(data, executor="looped", **changes):
    changes = {"epochs": 2, "steps_per_execution": 2, "verbose": 0, "callbacks": [Watch()]} | changes
    SEEN.clear()
    result = jc.fit({"w": jnp.ones(2)}, loss_fn, data, **grouped(optimizer=STILL, executor=executor, **changes))
    assert not threads()
    return result


def rows(data, executor="looped", **changes):
    """Trains; returns for each epoch the rows of its batches."""
    run(data, executor, **changes)
    epochs = {}
    for epoch, code in SEEN:
        epochs.setdefault(epoch, []).append([i for i in range(ROWS) if code >> i & 1])
    return list(epochs.values())


IN_ORDER = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def is_a_shuffle(epoch):
    return (
        [len(b) for b in epoch] == [4, 4, 2]
        and sorted(itertools.chain(*epoch)) == list(range(ROWS))
        and epoch != IN_ORDER
    )


def check_validation(data, **changes):
    """Validates on it: every row counts once, and equally."""
    result = run((X, Y), validation_data=data, batch_size=5, callbacks=[], **changes)
    np.testing.assert_allclose(result.history["val_x"], [X.mean()] * 2, rtol=1e-6)
    np.testing.assert_allclose(result.history["val_loss"], [((X @ np.ones(2)) ** 2).mean()] * 2, rtol=1e-6)


# torch


class TorchTensor:
    """As `torch.Tensor`: an array only after `detach().cpu()`."""

    def __init__(self, array, ready=False):
        self.array, self.ready = array, ready
        self.shape, self.dtype = array.shape, f"torch.{array.dtype}"

    def detach(self):
        return TorchTensor(self.array, self.ready)

    def cpu(self):
        return TorchTensor(self.array, True)

    def numpy(self):
        return self.__array__()

    def __array__(self, dtype=None, copy=None):
        if not self.ready:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        return self.array

    def __len__(self):
        return len(self.array)

    def __iter__(self):
        return iter(self.array)


class DistributedSampler:
    """As PyTorch's: it shuffles by the epoch that it was told."""

    def __init__(self):
        self.epoch, self.told = 0, []

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.told.append(epoch)

    def __iter__(self):
        order = list(range(ROWS))
        if self.epoch:
            random.Random(self.epoch).shuffle(order)
        return iter(order)


class BatchSampler:
    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        order = list(self.sampler)
        return (order[i : i + 4] for i in range(0, ROWS, 4))


class TorchLoader:
    """As `torch.utils.data.DataLoader`, whose default collation gives lists."""

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler
        self.sampler = getattr(batch_sampler, "sampler", None)
        self.dataset = DICTS

    def __len__(self):
        return 3

    def __iter__(self):
        for index in self.batch_sampler:
            yield [TorchTensor(X[index]), TorchTensor(Y[index].astype(np.int64))]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_torch_loader_trains_and_its_sampler_is_told_the_epoch(executor):
    sampler = DistributedSampler()
    first, second, third = rows(TorchLoader(BatchSampler(sampler)), executor, epochs=3)
    assert first == IN_ORDER
    assert is_a_shuffle(second)
    assert is_a_shuffle(third)
    assert second != third
    assert sampler.told == [0, 1, 2]  # once each, although two attributes lead to it


def test_a_batch_sampler_and_a_loader_with_set_epoch_are_told_too():
    class Batches(BatchSampler):
        def set_epoch(self, epoch):
            self.sampler.set_epoch(epoch + 10)

    class Prepared(TorchLoader):
        def set_epoch(self, epoch):
            told.append(epoch)

    told = []
    epochs = rows(Prepared(Batches(DistributedSampler())))
    assert len(epochs) == 2
    assert told == [0, 1]


def test_a_torch_loader_validates():
    check_validation(TorchLoader(BatchSampler(DistributedSampler())))


def test_a_tensor_of_a_dtype_that_numpy_lacks_comes_over_dlpack():
    class Half:
        """As a torch tensor of bfloat16."""

        shape = (4, 2)

        def __array__(self, dtype=None, copy=None):
            raise TypeError("Got unsupported ScalarType BFloat16")

        def __dlpack__(self, **kwargs):
            return self.own.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.own.__dlpack_device__()  # pyright: ignore[reportAttributeAccessIssue]

        own = jnp.ones((4, 2), jnp.bfloat16)

    def half_loss(params, batch):
        assert batch[0].dtype == jnp.bfloat16
        return jnp.mean((batch[0].astype(jnp.float32) @ params["w"]) ** 2)

    result = jc.fit({"w": jnp.ones(2)}, half_loss, [[Half(), Y[:4]]], optimizer=STILL, epochs=1, verbose=0)
    assert result.history["loss"].tolist() == [4.0]


def test_a_tensor_that_is_no_array_is_named():
    class Sparse:
        shape = (4, 2)

        def __array__(self, dtype=None, copy=None):
            raise TypeError("sparse")

    with pytest.raises(
        jc.errors.DataError, match=r"first batch of train_data: 0 is a Sparse that numpy cannot convert: sparse"
    ):
        run([[Sparse(), Y[:4]]])


def test_what_a_tokenizer_returns_is_a_dict():
    batches = [UserDict(x=X[i : i + 4], y=Y[i : i + 4]) for i in range(0, ROWS, 4)]
    assert rows(batches, epochs=1) == [IN_ORDER]


def test_the_real_torch_loader():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    assert rows(loader) == [IN_ORDER, IN_ORDER]
    check_validation(loader)
    sampler = torch.utils.data.DistributedSampler(data, num_replicas=1, rank=0)
    first, second = rows(torch.utils.data.DataLoader(data, batch_size=4, sampler=sampler))
    assert is_a_shuffle(first)
    assert is_a_shuffle(second)
    assert first != second


# tf.data


class EagerTensor:
    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def numpy(self):
        return self.array

    def __array__(self, dtype=None, copy=None):
        return self.array


class TFDataset:
    """As `tf.data.Dataset`: iterators are made anew, and the cardinality is a tensor."""

    def __init__(self, endless=False, ragged=False):
        self.endless, self.ragged = endless, ragged

    def cardinality(self):
        return EagerInt(-1 if self.endless else 3)

    def __len__(self):
        if self.endless:
            raise TypeError("The dataset is infinite.")
        return 3

    def __iter__(self):
        while True:
            for i in range(0, ROWS, 4):
                y = np.array([[1], [1, 2]], object) if self.ragged else Y[i : i + 4]
                yield {"x": EagerTensor(X[i : i + 4]), "y": EagerTensor(y)}
            if not self.endless:
                return


class EagerInt(int):
    pass


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_tf_dataset_trains(executor):
    assert rows(TFDataset(), executor) == [IN_ORDER, IN_ORDER]


def test_a_tf_dataset_validates():
    check_validation(TFDataset())


def test_an_endless_tf_dataset_needs_an_epochs_length():
    with pytest.raises(jc.errors.DataError, match=r"endless stream.*steps_per_epoch"):
        run(TFDataset(endless=True))
    assert rows(TFDataset(endless=True), steps_per_epoch=3) == [IN_ORDER, IN_ORDER]


def test_a_ragged_tensor_is_refused_by_name():
    with pytest.raises(jc.errors.DataError, match=r"train_data: y has dtype object"):
        run(TFDataset(ragged=True))


def test_the_real_tf_dataset():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices({"x": X, "y": Y}).batch(4)
    assert rows(data) == [IN_ORDER, IN_ORDER]
    check_validation(data)
    with pytest.raises(jc.errors.DataError, match="endless stream"):
        run(data.repeat())


# grain


@pytest.fixture
def grain():
    return pytest.importorskip("grain")


@pytest.mark.long
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_grain_map_dataset_has_another_order_each_epoch(grain, executor):
    data = grain.MapDataset.source(DICTS)
    assert rows(data.batch(4), executor) == [IN_ORDER, IN_ORDER]
    shuffled = data.shuffle(seed=1).batch(4)
    first, second = rows(shuffled, executor)
    assert is_a_shuffle(first)
    assert is_a_shuffle(second)
    assert first != second
    # those that repeating it gives
    assert [first, second] == rows(shuffled.repeat(), executor, steps_per_epoch=3)


def test_a_grain_iter_dataset(grain):
    data = grain.MapDataset.source(DICTS)
    assert rows(data.to_iter_dataset().batch(4)) == [IN_ORDER, IN_ORDER]
    assert rows(iter(data.batch(4).repeat(2)), steps_per_epoch=3) == [IN_ORDER, IN_ORDER]


def grain_loader(grain, epochs):
    sampler = grain.samplers.IndexSampler(
        ROWS, shuffle=False, num_epochs=epochs, shard_options=grain.sharding.NoSharding()
    )
    return grain.DataLoader(data_source=DICTS, sampler=sampler, operations=[grain.transforms.Batch(4)], worker_count=0)


def test_a_grain_loader(grain):
    assert rows(grain_loader(grain, 1)) == [IN_ORDER, IN_ORDER]
    check_validation(grain_loader(grain, 1))


def test_an_endless_grain_data_set_needs_an_epochs_length(grain):
    data = grain.MapDataset.source(DICTS).batch(4)
    endless = {
        "map": data.repeat(),
        "iter": data.repeat().to_iter_dataset().map(lambda b: b),
        "loader": grain_loader(grain, None),
    }
    for own in endless.values():
        with pytest.raises(jc.errors.DataError, match=r"endless stream.*steps_per_epoch"):
            run(own)
    assert rows(endless["iter"], steps_per_epoch=3) == [IN_ORDER, IN_ORDER]
    assert len(rows(endless["loader"], steps_per_epoch=4)) == 2
    limited = grain.experimental.LimitIterDataset(endless["iter"], 3)
    assert rows(limited) == [IN_ORDER, IN_ORDER]


def test_grain_data_validates(grain):
    data = grain.MapDataset.source(DICTS)
    check_validation(data.shuffle(seed=1).batch(4))
    check_validation(data.to_iter_dataset().batch(4))


# Hugging Face datasets


@pytest.fixture
def table():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()})


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_hugging_face_dataset_is_cut_into_batches(table, executor):
    assert rows(table, executor, batch_size=4, shuffle=False) == [IN_ORDER, IN_ORDER]
    first, second = rows(table, executor, batch_size=4, seed=1)
    assert is_a_shuffle(first)
    assert is_a_shuffle(second)
    assert first != second
    assert [first, second] == rows(table, executor, batch_size=4, seed=1)
    assert first != rows(table, executor, batch_size=4, seed=2)[0]
    dropped = rows(table, executor, batch_size=4, drop_remainder=True)
    assert [len(b) for epoch in dropped for b in epoch] == [4, 4, 4, 4]


def test_a_hugging_face_dataset_trains_as_its_columns_given_as_arrays(table):
    own = run(table, batch_size=4, shuffle=False, callbacks=[])
    arrays = run({"x": X, "y": Y}, batch_size=4, shuffle=False, callbacks=[])
    assert own.history.keys() == arrays.history.keys()
    for name in own.history:
        np.testing.assert_allclose(own.history[name], arrays.history[name], rtol=1e-6)


def test_a_hugging_face_dataset_has_batches_of_32_unless_told(table):
    assert rows(table, epochs=1) == [[list(range(ROWS))]]


def test_formats_and_transforms_of_the_users_own_are_kept(table):
    with_text = table.add_column("text", ["a"] * ROWS)
    with pytest.raises(jc.errors.DataError, match=r"first batch of train_data: text has dtype <U1"):
        run(with_text, batch_size=4)
    for chosen in (
        with_text.with_format("numpy", columns=["x", "y"]),
        with_text.with_format(None, columns=["x", "y"]),
        with_text.with_format("jax", columns=["x", "y"]),
        with_text.select_columns(["x", "y"]),
        with_text.with_transform(lambda b: {"x": np.array(b["x"], np.float32), "y": np.array(b["y"])}),
    ):
        assert rows(chosen, batch_size=4, shuffle=False, epochs=1) == [IN_ORDER]


def test_a_hugging_face_dataset_of_lists_of_unequal_length_is_refused():
    datasets = pytest.importorskip("datasets")
    ragged = datasets.Dataset.from_dict({"ids": [[1], [2, 3]]})
    with pytest.raises(jc.errors.DataError, match=r"first batch of train_data: ids has dtype object"):
        run(ragged)


def test_a_dict_of_splits_is_no_data_set(table):
    datasets = pytest.importorskip("datasets")
    with pytest.raises(jc.errors.DataError, match=r"DatasetDict of train, test .*one of these"):
        run(datasets.DatasetDict({"train": table, "test": table}), batch_size=4)
    with pytest.raises(jc.errors.DataError, match=r"dict of train .*one of these"):
        run({"train": TFDataset()})


def test_a_hugging_face_iterable_dataset(table):
    data = table.to_iterable_dataset(num_shards=2)
    assert rows(data.batch(4)) == [IN_ORDER, IN_ORDER]
    assert rows(data.with_format("numpy").batch(4)) == [IN_ORDER, IN_ORDER]
    shuffled = data.shuffle(seed=1, buffer_size=3).batch(4)
    first, second = rows(shuffled)
    assert is_a_shuffle(first)
    assert is_a_shuffle(second)
    assert first != second  # it was told the epoch
    assert [first, second] == rows(shuffled)
    with pytest.raises(jc.errors.DataError, match="batch_size=4 was given, but train_data is a IterableDataset"):
        run(data, batch_size=4)


def test_hugging_face_data_validates(table):
    check_validation(table)
    check_validation(table, validation_batch_size=3)
    check_validation(table.to_iterable_dataset().batch(4))


def test_a_function_may_return_data_of_other_libraries(table, grain):
    def data(epoch, controls):
        return table if epoch == 1 else grain.MapDataset.source(DICTS).shuffle(seed=1).batch(4)

    with pytest.raises(jc.errors.DataError, match="batch_size=4 was given, but what"):
        run(data, batch_size=4)
    first, second, third = rows(data, epochs=3)
    assert is_a_shuffle(first)
    assert is_a_shuffle(third)
    assert first != third
    assert second == [list(range(ROWS))]


# Several validation sets


@pytest.mark.parametrize("executor", EXECUTORS)
def test_named_validation_sets_of_all_kinds_together(table, grain, executor):
    ones = np.ones(2)
    loss = lambda x: ((x @ ones) ** 2).mean()  # noqa: E731
    sets = {
        "arrays": (X[:3], Y[:3]),
        "dict": {"x": X[2:5], "y": Y[2:5]},
        "list": [(X[:2], Y[:2]), (X[2:3], Y[2:3])],
        "grain": grain.MapDataset.source(DICTS[5:]).batch(2),
        "hub": table,
        "torch": TorchLoader(BatchSampler(range(ROWS))),
    }
    # what a last batch is does not matter here: every row counts
    result = run((X, Y), executor, validation_data=sets, batch_size=4, drop_remainder=True, epochs=1, callbacks=[])
    expected = {"arrays": X[:3], "dict": X[2:5], "list": X[:3], "grain": X[5:], "hub": X, "torch": X}
    for name, x in expected.items():
        np.testing.assert_allclose(result.history[f"val_{name}_loss"], [loss(x)], rtol=1e-5)


def bare_loss(params, batch):
    return jnp.mean(batch @ params["w"])


@pytest.mark.parametrize("train", [X, [X[:5], X[5:]]], ids=["arrays", "batches"])
def test_a_dict_of_bare_arrays_names_sets_where_training_batches_are_no_dicts(train):
    sets = {"near": X[:3], "far": X[3:]}
    how = {"optimizer": STILL, "epochs": 1, "verbose": 0}
    result = jc.fit({"w": jnp.ones(2)}, bare_loss, train, validation_data=sets, **how)
    np.testing.assert_allclose(result.history["val_near_loss"], [2 * X[:3].mean()], rtol=1e-6)
    np.testing.assert_allclose(result.history["val_far_loss"], [2 * X[3:].mean()], rtol=1e-6)


def test_when_a_dict_names_validation_sets():
    batch, pair = {"x": X, "y": Y}, (X, Y)
    assert list(named_sets(batch, like=batch)) == ["val_"]
    assert list(named_sets({"x": X}, like=batch)) == ["val_"]
    assert list(named_sets({"obs": {"x": X}}, like={"obs": {"x": X}})) == ["val_"]
    assert list(named_sets({"near": batch, "far": [batch]}, like=batch)) == ["val_near_", "val_far_"]
    assert list(named_sets({"near": X, "far": [X]}, like=X)) == ["val_near_", "val_far_"]
    assert list(named_sets({"near": pair}, like=pair)) == ["val_near_"]
    # where nothing is known of the training batches
    assert list(named_sets(batch)) == ["val_"]
    assert list(named_sets({"near": pair})) == ["val_near_"]


# The rest


PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("library", ["grain", "datasets", "torch", "tensorflow"])
def test_the_page_on_data_shows_what_works(library):
    """Its blocks for other libraries are marked `py`, so that they run only where the library is."""
    pytest.importorskip(library)
    start = re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (block,) = [b for b in blocks if f"import {library}\n" in b]
    assert start is not None
    exec(start.group(1) + block, {"__name__": "data"})


def test_no_library_is_imported_for_data_that_is_not_its_own():
    code = (
        "import sys, numpy as np, optax, jax.numpy as jnp, jaxcb as jc\n"
        "data = [np.ones((2, 1), np.float32)]\n"
        "jc.fit({'w': jnp.ones(1)}, lambda p, b: jnp.mean(b @ p['w']), data, optimizer=optax.sgd(0.1), epochs=1, "
        "validation_data=data, verbose=0)\n"
        "print([m for m in ('grain', 'datasets', 'torch', 'tensorflow', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
