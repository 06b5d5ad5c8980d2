"""`sweep`: a population of runs in one program, each with its own callbacks."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from jaxcb._src.callbacks.html_report import HTMLReport
from jaxcb._src.checkpointing.layout import CHECKPOINTS, TABLE
from jaxcb._src.core.callback import Callback
from jaxcb._src.core.chain import AsCallback, as_chain
from jaxcb._src.data.inputs import is_no_split, split_off, with_weights
from jaxcb._src.distributed.processes import processes
from jaxcb._src.loop.compiled.member_map import STRATEGIES
from jaxcb._src.loop.compiled.traced_functions import RunFunctions
from jaxcb._src.loop.config import Checkpointing, Execution, RunConfig
from jaxcb._src.loop.host.driver import Driver
from jaxcb._src.loop.host.population import Population
from jaxcb._src.loop.run import open_place, run_training
from jaxcb._src.models.trainable import Filter
from jaxcb._src.storage.ownership import FOLDER, RECORD, RunRecord
from jaxcb._src.sweep.members import Member, bytes_of, describe_group, group_by_program, make_members, stack_members
from jaxcb._src.sweep.result import Part, SweepResult
from jaxcb._src.sweep.space import Point, as_points
from jaxcb._src.training.probes import Evaluator, HostMetric, Probe
from jaxcb._src.training.train_step import EvalStep, Step
from jaxcb._src.training.training_config import Optimizer, Rate, TrainingConfig
from jaxcb._src.utils.address import Address, parse_address
from jaxcb._src.utils.errors import DataError, check_bool, check_choice, check_int
from jaxcb._src.utils.local_path import check_no_link_out, local_path
from jaxcb._src.utils.platforms import memory
from jaxcb._src.writers.base import Context
from jaxcb._src.writers.history import HistoryWriter


def sweep(  # noqa: PLR0913
    model_fn: Any,
    loss_fn: Callable[..., Any],
    train_data: Any,
    *,
    over: Mapping[str, Iterable[Any]] | Sequence[Point],
    optimizer: Optimizer | Mapping[Filter, Optimizer],
    learning_rate: Rate | Mapping[Filter, Rate] | None = None,
    trainable: Filter | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    steps_per_epoch: int | None = None,
    batch_size: int | None = None,
    shuffle: bool = True,
    validation_data: Any = None,
    validation_split: float = 0.0,
    validation_freq: int | Sequence[int] = 1,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    callbacks: Sequence[Callback | AsCallback] | Callback | AsCallback | None = (),
    sample_weight: Any = None,
    class_weight: Mapping[int, float] | None = None,
    controls: Mapping[str, float] | None = None,
    metrics: Mapping[Any, Probe | Evaluator | HostMetric] | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    resume: bool = False,
    verbose: Literal[0, 1, 2] | None = None,
    execution: Execution = Execution(),
    checkpointing: Checkpointing = Checkpointing(),
    strategy: Literal["vmap", "map", "shard"] | None = None,
    repack: bool | None = None,
    at_once: int | None = None,
) -> SweepResult:
    """Trains a population of runs in one program, each with its own callbacks.

    A member does what it would do alone: `sweep(model_fn, ..., over=points).member(i)` is the result of
    `fit(model_fn(seed), ...)` with the values of `points[i]`. It stops alone, keeps its own best weights and its own
    learning rate, and costs nothing after it has stopped. Members differ in arrays, so one compiled program serves all
    of them. Numbers that a library needs as Python values, such as Flax's dropout rate, split the members into groups
    with one program each.

    Args:
        model_fn: `model_fn(seed)` returns a member's model, as for `fit`; it is called with the seed and the values of
            `model.NAME`. Or a model, of which each member trains a copy.
        loss_fn: as for `fit`.
        train_data: as for `fit`, without the function. All members share a stream of batches; arrays are in the order
            of each member's seed.
        over: what the members differ in, by path: `seed`, `learning_rate`, `optimizer.NAME` (another number of
            the factory, or the learning rate; with several, `optimizer.GROUP.learning_rate`), `controls.NAME`,
            `callbacks.NAME.FIELD`, `model.NAME`. A dict of paths to values is a grid; otherwise a list of points, such
            as `jc.search.draws(n, {...})` makes.
        optimizer: as for `fit`; a factory if its numbers are swept.
        learning_rate: as for `fit`; not used if it is swept.
        trainable: as for `fit`. Members of one model share its frozen parameters.
        epochs: number of epochs to train.
        steps: number of updates to do; with `epochs`, whichever comes first.
        steps_per_epoch: steps of an epoch. None is one pass over the data.
        batch_size: rows of a batch, for arrays. None is 32.
        shuffle: whether arrays get a new order in each epoch, drawn from `seed` and the epoch.
        validation_data: as `train_data`, or a dict of named sets.
        validation_split: the last fraction of the rows of arrays to validate on, as in Keras.
        validation_freq: validate every n-th epoch, or after the listed (1-based) epochs.
        validation_steps: at most that many validation batches.
        validation_batch_size: rows of a validation batch. None is `batch_size`.
        callbacks: callbacks in the order in which their actions apply.
        sample_weight: as for `fit`.
        class_weight: as for `fit`.
        controls: name -> number: scalars that `SetControl` changes and that the loss function may take.
        metrics: as for `fit`, without evaluators. All members share a host metric.
        seed: as for `fit`, of the members whose seed is not swept.
        run_dir: as for `fit`; `history.csv` has a row for each member and epoch, and `table.csv` a row for each member.
        resume: whether a run in `run_dir` is resumed: it ends as if it had never been interrupted. A finished one
            returns its result at once. If there is none, a new run begins.
        verbose: 0 for silence, 1 for a progress bar, 2 for a line an epoch. None is the bar on a terminal, and lines
            elsewhere.
        execution: as for `fit`, without `resident`, `sharding`, `copy` and `debug`; the `mesh` is that of
            `strategy="shard"`.
        checkpointing: how the run is saved; see `Checkpointing`.
        strategy: how a step covers the members: "vmap" all at once, "map" one after another, "shard" over the devices.
            None measures a few steps, and prints which one it selects.
        repack: whether stopped members leave the program when half of it is idle. None lets them leave when they have
            cost as much time as it takes to build a smaller program.
        at_once: number of members that train at the same time, if all are too many for the memory.

    Returns:
        A `SweepResult`: `best(...)`, `table()`, `plot()`, and `member(i)` as an ordinary result.

    Raises:
        TypeError: for an argument of an unsupported type, and for a swept value that is no number; it names the path.
        ValueError: for a path that does not exist, a value out of range or one that changes a shape; it names the
            path. And for arguments that do not fit together.
        DataError: for data that cannot be trained on.
        MemoryError: for more members than fit; it states how much they need and how many would fit.

    Example:
        >>> import jaxcb as jc, jax, jax.numpy as jnp, optax
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> def model_fn(seed):
        ...     return {"w": jax.random.normal(jax.random.key(seed), (1, 1))}
        >>> def loss_fn(params, batch):
        ...     x, y = batch
        ...     return jnp.mean((x @ params["w"] - y) ** 2)
        >>> result = jc.sweep(model_fn, loss_fn, (x, 3 * x), optimizer=optax.adam, learning_rate=0.1, epochs=60,
        ...                   over={"seed": range(2), "optimizer.learning_rate": [0.001, 0.1]},
        ...                   callbacks=[jc.EarlyStopping("loss", patience=5)], verbose=0)
        >>> len(result), result.best("loss").point["optimizer.learning_rate"]
        (4, 0.1)
    """
    points = as_points(over)
    at_once = None if at_once is None else check_int("sweep", "at_once", at_once, least=1, concrete=True)
    check_choice("sweep", "strategy", strategy, (None, *STRATEGIES))
    repack = None if repack is None else check_bool("sweep", "repack", repack)
    if callable(train_data) and not isinstance(train_data, Iterable):
        raise DataError("train_data is a function, which follows the controls of one run; members share their data.")
    train_data = with_weights("sweep", train_data, sample_weight)
    if not is_no_split(validation_split):
        train_data, validation_data = split_off("sweep", train_data, validation_data, validation_split)
    config = RunConfig.of(
        "sweep",
        epochs=epochs,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        batch_size=batch_size,
        shuffle=shuffle,
        validation_data=validation_data,
        validation_freq=validation_freq,
        validation_steps=validation_steps,
        validation_batch_size=validation_batch_size,
        metrics=metrics,
        seed=seed,
        run_dir=run_dir,
        resume=resume,
        verbose=verbose,
        execution=execution,
        checkpointing=checkpointing,
        unsupported=("resident", "sharding", "copy", "debug"),
    )
    if config.metrics.evaluators:
        names = ", ".join(next(iter(config.metrics.evaluators)))
        raise ValueError(
            f"sweep: metrics has an evaluator, {names!r}, which needs the model of one run. Return the value "
            "from loss_fn as a metric, or compute it from result.member(i).model."
        )
    directory = config.run_dir
    base = TrainingConfig(
        config.seed,
        optimizer,
        _given_rate(learning_rate, points),
        as_chain(callbacks),
        controls=controls or {},
        trainable=trainable,
        owner="sweep",
    )
    together_at_most = min(at_once or len(points), len(points))
    members = make_members(model_fn, base, points, lambda first: _check_memory(bytes_of(first), together_at_most))
    groups, fixed = group_by_program(members)
    where = list(_split(groups, at_once))
    with contextlib.ExitStack() as stack:
        if isinstance(directory, Address):
            config, directory = _in_local_folder(config, directory, stack)
        if directory is not None and not config.is_trial and jax.process_index() == 0:
            _refuse_others_table(directory)
        if verbose != 0 and jax.process_index() == 0:
            _say_groups(groups, len(where))
        step = Step(loss_fn, class_weight=class_weight).for_population()
        eval_step = EvalStep(loss_fn, class_weight=class_weight)
        result = SweepResult(tuple(points), (), directory)
        for number, group in enumerate(where):
            # without a directory, `run_dir` may be an address, which a trial run does not open
            part = directory / f"part_{number}" if directory and len(where) > 1 else directory or config.run_dir
            one = stack_members(group, fixed)
            result = run_training(
                RunFunctions(step, eval_step, one.callbacks),
                one.state,
                train_data,
                dataclasses.replace(config, run_dir=part),
                population=Population(len(group), one.axes, one.seeds, strategy, repack, one.frozen_axis),
                result=lambda driver, at, context, _, group=group, done=result.parts: SweepResult(
                    tuple(points), (*done, _part(group, driver, at, context)), directory
                ),
            )
            if result.parts[-1].interrupted:
                return result
        if directory is not None and not config.is_trial:
            _write_table(result, directory)
            _renew_reports(result, directory, base.callbacks.callbacks)
    return result


def _in_local_folder(config: RunConfig, address: Address, stack: contextlib.ExitStack) -> tuple[RunConfig, Path | None]:
    """Opens the bucket of a sweep once for all its parts, and returns its local folder; none for a trial run."""
    if config.is_trial:
        return config, None
    with processes() as group:
        place = stack.enter_context(open_place(address, config, group))
    return dataclasses.replace(config, run_dir=place.directory, place=place), place.directory


def _write_table(result: SweepResult, directory: Path) -> None:
    """Writes the table of members, after the record of the sweep names it."""
    if jax.process_index() == 0:
        record = RunRecord.read(directory) or RunRecord(directory)
        record.make(TABLE)
        if not record.begun:
            record.begin()
    result.write_table(directory / TABLE)


def _renew_reports(result: SweepResult, directory: Path, callbacks: Sequence[Callback]) -> None:
    """Renews the reports, which show the table: it is written when the last part of the sweep has ended."""
    names = [c.filename for c in callbacks if isinstance(c, HTMLReport)]
    for name in names if jax.process_count() == 1 else ():
        if parse_address("HTMLReport", "filename", name) is not None:
            continue  # a run without the table is there
        path = local_path("HTMLReport", "filename", name, below=directory)
        record = RunRecord.read(directory)
        if record is not None and path.is_relative_to(directory):
            record.make(path.relative_to(directory).as_posix())
        try:
            result.report(path)
        except OSError as error:
            warnings.warn(f"jaxcb: the report could not be written: {error}", RuntimeWarning, stacklevel=3)


def _refuse_others_table(directory: Path) -> None:
    """Raises an error where the table's place is taken by what no sweep in this directory has written."""
    for path in (directory / TABLE, directory / FOLDER / RECORD, *directory.glob("part_*")):
        check_no_link_out(directory, path)
    record = RunRecord.read(directory)
    old = any((directory / name / CHECKPOINTS).is_dir() for name in ("", "part_0"))  # of the time before records
    known = TABLE in record.made if record is not None else old
    if (directory / TABLE).exists() and not known:
        raise FileExistsError(
            f"{directory / TABLE} is in the way: a sweep writes a file of that name, and no record in {directory} says "
            "that this one is a sweep's. Move it, or pass another run_dir."
        )


def _given_rate(learning_rate: Any, points: Sequence[Point]) -> Any:
    """The learning rate, or where it is swept and none was given, the first of its values."""
    swept = points[0].get("learning_rate", points[0].get("optimizer.learning_rate"))
    return swept if learning_rate is None and swept is not None else learning_rate


def _split(groups: Sequence[list[Member]], at_once: int | None) -> Iterator[list[Member]]:
    """The groups in pieces of at most so many members."""
    for group in groups:
        size = at_once or len(group)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _say_groups(groups: Sequence[list[Member]], parts: int) -> None:
    everyone = [member for group in groups for member in group]
    count = f"jaxcb: a sweep of {len(everyone)} members"
    if len(groups) > 1:
        named = "; ".join(f"{describe_group(group, everyone)} ({len(group)} members)" for group in groups)
        print(f"{count} in {len(groups)} groups, which share no program: {named}.", flush=True)
    elif parts > 1:
        print(f"{count}, in {parts} parts one after another.", flush=True)
    else:
        print(f"{count} in one program.", flush=True)


def _part(group: Sequence[Member], driver: Driver, directory: Path | None, context: Context) -> Part:
    carry = driver.carry()
    assert driver.device.members is not None
    return Part(
        members=tuple(group),
        state=carry.train,
        callback_states=carry.callbacks,
        history=driver.writer(HistoryWriter).history,
        stops=tuple(driver.results.stops),
        interrupted=driver.interrupted is not None,
        executor=driver.device.executor.name,
        strategy=driver.device.members.strategy.name,
        sizes=tuple(driver.device.members.sizes),
        run_dir=None if context.trial else directory,
        files=() if context.trial else tuple(context.files),
        shares_frozen=driver.device.members.frozen_axis is None,
    )


def _check_memory(each: int, members: int) -> None:
    """Refuses a population that the device has no room for.

    Raises:
        MemoryError: saying what is needed and how many members would fit.
    """
    room = _room()
    if room is None or each * members <= room:
        return
    fit = max(int(room // each), 1)
    raise MemoryError(
        f"{members} members need about {each * members / 2**30:.3g} GiB ({each / 2**20:.3g} MiB each: train state, "
        f"named weights, gradients and updates), and there is room for {room / 2**30:.3g} GiB. Pass at_once={fit} to "
        "train them in parts one after another, or sweep fewer."
    )


def _room() -> int | None:
    """Bytes that there are for a population: on an accelerator what is free, else all; None where not known."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return memory()
