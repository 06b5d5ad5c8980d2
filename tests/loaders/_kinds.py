"""Data of PyTorch, TensorFlow and grain: how it is made, and what a resumed run is expected to find.

Each function imports the library that it needs, so that a run loads only one of them.
"""

from typing import Any, NamedTuple

from loaders._rows import ROWS, NamedSource, Source, X, Y

BATCH, EPOCHS = 4, 3


class Kind(NamedTuple):
    """A way to give data.

    Attributes:
        make: returns the data, for each process.
        how: further arguments of `fit`.
        finds: what a run finds that was killed in an epoch: "same" bits, or a part of its warning.
        boundary: the same for one that was killed after an epoch; None where it is not tried.
        whole: a part of the warning of every run; None if it has none.
        refused: a part of the error before the first step; None for a run.
    """

    make: Any
    how: dict[str, Any] = {}  # noqa: RUF012
    finds: str = "same"
    boundary: str | None = None
    whole: str | None = None
    refused: str | None = None


# PyTorch


def torch_loader(data: Any = None, workers: int = 2, **how: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y)) if data is None else data
    # a fork of a process that uses JAX can deadlock
    context = "forkserver" if workers else None
    return torch.utils.data.DataLoader(data, BATCH, num_workers=workers, multiprocessing_context=context, **how)


def seeded(workers: int, **how: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    return torch_loader(workers=workers, shuffle=True, **how)


def with_sampler(workers: int, **how: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    rows = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    sampler = torch.utils.data.DistributedSampler(rows, num_replicas=1, rank=0, seed=3)
    return torch_loader(rows, workers, sampler=sampler, **how)


def of_the_epoch(epoch: int, controls: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]

    return torch_loader(shuffle=True, generator=torch.Generator().manual_seed(epoch))


def iterable(shared: bool = False, **how: Any) -> Any:
    import torch  # pyright: ignore[reportMissingImports]
    from loaders._torch_rows import Rows

    return torch_loader(Rows(torch.tensor(0).share_memory_() if shared else 0), **how)


# TensorFlow


def tf_rows() -> Any:
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]

    return tf.data.Dataset.from_tensor_slices((X, Y))


def tf_mapped() -> Any:
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]

    double = tf_rows().map(lambda x, y: (2 * x, 2 * y), num_parallel_calls=tf.data.AUTOTUNE)
    return double.batch(BATCH).prefetch(tf.data.AUTOTUNE)


# grain


def grain_rows() -> Any:
    import grain

    return grain.MapDataset.source(NamedSource()).shuffle(seed=1)


def grain_workers() -> Any:
    import grain

    return grain_rows().repeat().to_iter_dataset().batch(BATCH).mp_prefetch(grain.MultiprocessingOptions(2))


def grain_loader(source: Any, workers: int) -> Any:
    import grain

    sampler = grain.samplers.IndexSampler(
        ROWS, shuffle=True, seed=3, num_epochs=None, shard_options=grain.sharding.NoSharding()
    )
    return grain.DataLoader(
        data_source=source, sampler=sampler, operations=[grain.transforms.Batch(BATCH)], worker_count=workers
    )


CUT = {"steps_per_epoch": 7}
OTHER = "is not the batch that the run was trained on"
AGAIN = "begins with the batch of pass 1"
KINDS = {
    "torch, in order, 2 workers": Kind(torch_loader),
    "torch, shuffle=True": Kind(lambda: seeded(0), finds=OTHER, boundary=AGAIN),
    "torch, shuffle=True, 2 workers": Kind(lambda: seeded(2), finds=OTHER, boundary=AGAIN),
    "torch, DistributedSampler": Kind(lambda: with_sampler(0)),
    "torch, DistributedSampler, 2 workers": Kind(lambda: with_sampler(2), boundary="same"),
    "torch, DistributedSampler, 2 kept workers": Kind(lambda: with_sampler(2, persistent_workers=True)),
    "torch, a function of the epoch": Kind(lambda: of_the_epoch),
    "torch, IterableDataset, 3 workers": Kind(lambda: iterable(workers=3)),
    "torch, IterableDataset, 2 kept workers": Kind(
        lambda: iterable(persistent_workers=True), finds=OTHER, whole="set_epoch of the loader's dataset has no effect"
    ),
    "torch, IterableDataset, 2 kept workers that are told": Kind(
        lambda: iterable(shared=True, persistent_workers=True)
    ),
    "tf, in order": Kind(lambda: tf_rows().batch(BATCH)),
    "tf, map and prefetch": Kind(tf_mapped),
    "tf, shuffle(seed)": Kind(lambda: tf_rows().shuffle(ROWS, seed=1).batch(BATCH), finds=OTHER, boundary=AGAIN),
    "tf, shuffle(seed, reshuffle_each_iteration=False)": Kind(
        lambda: tf_rows().shuffle(ROWS, seed=1, reshuffle_each_iteration=False).batch(BATCH)
    ),
    "tf, a function of the epoch": Kind(
        lambda: lambda e, c: tf_rows().shuffle(ROWS, seed=int(e)).batch(BATCH), boundary="same"
    ),
    "tf, repeat, cut": Kind(lambda: tf_rows().shuffle(ROWS, seed=1).batch(BATCH).repeat(), CUT),
    "grain, MapDataset": Kind(lambda: grain_rows().batch(BATCH), boundary="same"),
    "grain, MapDataset, cut": Kind(lambda: grain_rows().repeat().batch(BATCH), CUT),
    "grain, IterDataset": Kind(lambda: grain_rows().repeat().to_iter_dataset().batch(BATCH), CUT),
    "grain, IterDataset, 2 workers": Kind(grain_workers, CUT, boundary="same"),
    "grain, DataLoader": Kind(lambda: grain_loader(NamedSource(), 0), CUT),
    "grain, DataLoader, 2 workers": Kind(lambda: grain_loader(NamedSource(), 2), CUT),
    "grain, DataLoader, a source without __repr__": Kind(
        lambda: grain_loader(Source(), 0), CUT, refused="Define __repr__ in Source"
    ),
}
