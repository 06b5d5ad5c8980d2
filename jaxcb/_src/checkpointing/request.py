"""The request of a run: recorded in its checkpoints as JSON, and compared in full when the run is resumed.

A fact that an old record lacks is not compared. Functions are compared by their jaxpr, within one version of JAX.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.interpreters import partial_eval

from jaxcb._src.checkpointing.layout import described_fields
from jaxcb._src.core.chain import Chain
from jaxcb._src.data import inputs as _data
from jaxcb._src.data.sources import BATCH_SIZE
from jaxcb._src.storage.fingerprint import fingerprint, frozen_facts, named
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.utils.flat_jit import FlatJit
from jaxcb._src.utils.program_key import stable_hash, trace_key
from jaxcb._src.utils.pytree import Struct
from jaxcb._src.utils.secrets import mask_text, mask_value

_LENGTHS = ("epochs", "steps")
_FIXED = ("seed", "batch_size")  # of the order of the data; the others may change between epochs
_DATA = ("train_data", "drop_remainder")
# facts that may change, with what a warning calls them
_FREE = {
    "learning_rate": "learning_rate",
    "validation": "the validation data",
    "validation_freq": "validation_freq",
    "eval_every": "eval_every",
    "metrics": "metrics",
    "optimizer": "the optimizer",
    "train_step": "train_step",
    "numbers": "the numbers of the members",
}


class Differences(NamedTuple):
    """Where a request differs from the record of a run: texts with both values.

    Attributes:
        refused: what makes it another run.
        warned: what the run continues with.
    """

    refused: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()

    @property
    def only_lengths(self) -> bool:
        """Whether nothing but the number of epochs or steps has changed."""
        return all(text.partition(" ")[0] in _LENGTHS for text in self.warned)

    def refuse(self, directory: Path) -> None:
        """Raises an error for a request of another run.

        Raises:
            ValueError: with both values.
        """
        if self.refused:
            raise ValueError(
                f"the run in {directory} was made with another request: {'; '.join(self.refused)}. Resume with the "
                "previous values, or pass another run_dir, or checkpointing=jc.Checkpointing(overwrite=True)."
            )

    def warn(self, directory: Path, step: int, warn: Callable[[str], None]) -> None:
        """Warns of what has changed, whatever the verbosity."""
        if self.warned:
            warn(f"resuming {directory} at step {step} with another request: {'; '.join(self.warned)}.")


def request_facts(
    callbacks: Chain,
    *,
    epochs: int | None,
    steps: int | None,
    order: Mapping[str, Any],
    layout: str,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns a description of the requested training that is equal on all processes.

    Args:
        callbacks: the callbacks, in order.
        epochs: number of epochs, or None.
        steps: number of steps, or None.
        order: what the order of the batches depends on.
        layout: how the arrays are distributed.
        more: further facts, see `further_facts`; those that are None are left out.
    """
    named = {name: _words(callback) for name, callback in callbacks.items() if callback.affects_run}
    known = {name: fact for name, fact in more.items() if fact is not None}
    return {
        "epochs": epochs,
        "steps": steps,
        "callbacks": named,
        "data": dict(order),
        "layout": layout,
        "request": known,
    }


def further_facts(
    state: TrainState, train_data: Any, validation_data: Any, *, validation_freq: Any, **given: Any
) -> dict[str, Any]:
    """Returns the facts about data and learning rate that are known before the run is built.

    Args:
        state: the initial train state.
        train_data: as given.
        validation_data: as given.
        validation_freq: a number, or the epochs.
        **given: `drop_remainder`, `eval_every`, `executor` and `metrics`.
    """
    sets = validation_data if isinstance(validation_data, Mapping) else {"": validation_data}
    held = {str(name): data_facts(own) for name, own in sets.items()} if validation_data is not None else {}
    rate = getattr(state.tx, "rate", None)
    return {
        "train_data": data_facts(train_data),
        "validation": held,
        "validation_freq": list(validation_freq) if isinstance(validation_freq, tuple) else validation_freq,
        "frozen": None if state.frozen is None else frozen_facts(named(state.frozen)),
        "learning_rate": _as_json(rate),
        # a sweep's members have their rates and other numbers in the optimizer's state
        "numbers": fingerprint(state.opt_state) if np.ndim(state.step) and state.opt_state is not None else None,
        **given,
    }


def _as_json(rate: Any) -> Any:
    """Returns a constant learning rate, or those of several optimizers by name; None for any other."""
    if isinstance(rate, Mapping):
        return {name: float(own) for name, own in sorted(rate.items()) if isinstance(own, int | float)}
    return float(rate) if isinstance(rate, int | float) else None


def traced_facts(
    step: Any, state: TrainState, batch: Any, with_mesh: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> dict[str, Any]:
    """Returns facts about loss function and optimizer from their jaxprs.

    Args:
        step: a `Step`, or a user's training step.
        state: shapes of the train state of a single run.
        batch: shapes of a batch.
        with_mesh: returns a function in which a `PartitionSpec` can name the axes of the mesh.
    """
    loss_fn: Any = getattr(getattr(step, "_gradients", None), "loss_fn", None)
    tx: Any = state.tx

    def loss(state: TrainState, batch: Any) -> Any:
        return loss_fn(state.model(train=True), batch, state, train=True).loss

    def update(state: TrainState, value: Any) -> Any:
        grads, more = state.params, {"value": value, "grad": state.params}
        return optax.with_extra_args_support(tx).update(grads, state.opt_state, state.params, **more)

    found = {"train_step": _trace_hash(step, state, batch)}
    if loss_fn is not None:
        found = {"loss_fn": _trace_hash(with_mesh(loss), state, batch)}
    if tx is not None:
        found["optimizer"] = _trace_hash(with_mesh(update), state, jax.ShapeDtypeStruct((), np.float32))
    return {name: {"jax": jax.__version__, "hash": key} for name, key in found.items() if key is not None}


def _trace_hash(fn: Callable[..., Any], *args: Any) -> str | None:
    """Returns a hash of the jaxpr of a function; None if it cannot be traced alone, or has effects."""
    try:
        closed = FlatJit(fn).trace(*args).jaxpr
        # metrics that the function returns besides the loss may change
        jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
        read = {id(var) for equation in jaxpr.eqns for var in equation.invars} | {id(var) for var in jaxpr.outvars}
        consts = [(var, c) for var, c in zip(jaxpr.constvars, closed.consts, strict=True) if id(var) in read]
        key = trace_key(jaxpr.replace(constvars=[var for var, _ in consts]), [str(fingerprint(c)) for _, c in consts])
        return stable_hash(key, fingerprint)
    except Exception:  # an error of the user's function is raised where the step is traced
        return None


# Data


def data_facts(data: Any) -> dict[str, Any] | None:
    """Returns the length of data and a hash of at most a part of it; None for data that has neither, like a stream."""
    try:
        if _data.is_table(data):
            return {"rows": len(data)}  # the fingerprints of such tables differ between processes
        if isinstance(data, list):
            return {"batches": len(data), "hash": fingerprint(data)}
        if _data.are_arrays(data):
            return {"rows": _data.rows_of(data, "data"), "hash": fingerprint(data)}
    except Exception:
        pass  # invalid data: an error says so later, with the name of the argument
    return None


# Comparison


def compare(before: Mapping[str, Any], now: Mapping[str, Any], facts: Mapping[str, Any]) -> Differences:
    """Compares a request with the record of a run.

    Args:
        before: `request_facts` of the record.
        now: those of the request.
        facts: the other facts of the checkpoint.
    """
    refused, warned = [], []
    old, new = _order(before["data"]), _order(now["data"])
    for name in (n for n in new if n in old and old[n] != new[n]):
        # in the middle of an epoch, the rest of its batches would be others
        (refused if name in _FIXED or facts["cursor"] else warned).append(f"{name} was {old[name]}, is {new[name]}")
    asked, was = now.get("request", {}), before.get("request", {})
    for name in _DATA:
        if name in asked and name in was:
            refused += _data_difference(name, was[name], asked[name])
    if "request" in before:  # not in runs of earlier versions
        refused += _frozen_difference(was.get("frozen"), asked.get("frozen"))
    warned += [f"{name} {before[name]} -> {now[name]}" for name in _LENGTHS if before[name] != now[name]]
    for name, what in _FREE.items():
        traced = isinstance(asked.get(name), dict) and name not in ("learning_rate", "metrics")
        if name in asked and name in was and was[name] != asked[name] and not traced:
            warned.append(f"{what} {was[name]} -> {asked[name]}")
    warned += _validation_difference(was.get("validation"), asked.get("validation"))
    if asked.get("executor") not in (None, facts["executor"]):
        warned.append(
            f"executor {facts['executor']} -> {asked['executor']}, so that results are equal up to rounding, not bit "
            "for bit"
        )
    if before["layout"] != now["layout"]:
        warned.append(
            f"layout {before['layout']} -> {now['layout']}, so that results are equal up to rounding, not bit for bit"
        )
    return Differences(tuple(refused), (*warned, *_callback_differences(before["callbacks"], now["callbacks"])))


def compare_traced(before: Mapping[str, Any], now: Mapping[str, Any]) -> Differences:
    """Compares the facts of `traced_facts`, which are known once the run is built."""
    refused, warned = [], []
    for name, fact in now.items():
        was = before.get(name)
        # the jaxpr of one function differs with the version of JAX, and with the mesh
        if was is None or was["jax"] != fact["jax"] or was.get("layout") != fact["layout"]:
            continue
        if was["hash"] == fact["hash"]:
            continue
        if name == "loss_fn":
            refused.append(f"loss_fn computed {was['hash']} (hash of its jaxpr), computes {fact['hash']}")
        else:
            warned.append(f"{_FREE[name]} {was['hash']} -> {fact['hash']} (hashes of jaxprs)")
    return Differences(tuple(refused), tuple(warned))


def _order(data: Mapping[str, Any]) -> dict[str, Any]:
    return {**data, "batch_size": data.get("batch_size") or BATCH_SIZE}


def _data_difference(name: str, was: Any, now: Any) -> Iterator[str]:
    if not isinstance(was, dict) or not isinstance(now, dict):
        if was != now:
            yield f"{name} was {was}, is {now}"
        return
    for part in ("rows", "batches"):
        if part in was and part in now and was[part] != now[part]:
            yield f"{name} had {was[part]} {part}, has {now[part]}"
            return
    if was.get("hash") and now.get("hash") and was["hash"] != now["hash"]:
        yield f"{name} had other values (hash {was['hash']}), now {now['hash']}"


def _frozen_difference(was: Any, now: Any) -> Iterator[str]:
    counts = [{} if facts is None else facts for facts in (was, now)]
    old, new = ((facts.get("parameters", 0), facts.get("arrays", 0)) for facts in counts)
    if old != new:
        yield (
            f"trainable= left out {old[0]:,} parameters in {old[1]} arrays, now leaves out {new[0]:,} in {new[1]} "
            "arrays"
        )
    elif was and now and was["hash"] and now["hash"] and was["hash"] != now["hash"]:
        yield (
            f"the frozen parameters had other values (hash {was['hash']}), now {now['hash']}; a checkpoint does not "
            "contain them, so begin with the model that the run began with"
        )


def _validation_difference(was: Any, now: Any) -> Iterator[str]:
    if was is None or now is None:
        return
    for name in sorted({*was, *now}):
        shown = f"the validation set {name!r}" if name else "the validation data"
        if (name in was) != (name in now):
            yield f"{shown} is {'new' if name in now else 'missing'}"
        elif was[name] is not None and now[name] is not None:
            yield from _data_difference(shown, was[name], now[name])


def _callback_differences(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    yield from (f"{name} is missing" for name in before if name not in now)
    yield from (f"{name} is new" for name in now if name not in before)
    both = [name for name in before if name in now]
    if both != (order := [name for name in now if name in before]):
        yield f"the order of the callbacks {', '.join(both)} -> {', '.join(order)}"
    for name in both:
        if before[name] == now[name]:
            continue
        (was, old), (kind, new) = described_fields(before[name]), described_fields(now[name])
        old, new = {**old, "type": was}, {**new, "type": kind}
        if old.keys() - new.keys():  # a field that the record lacks is of a later version, and is not compared
            yield f"{name}: {before[name]:.200} -> {now[name]:.200}"
        else:
            for field in (f for f in old if old[f] != new[f]):
                yield f"{name}.{field} {old[field]:.80} -> {new[field]:.80}"


def is_other(before: str | None, now: str | None) -> bool:
    """Returns whether a callback differs from its record; None stands for one that is not there."""
    if before is None or now is None:
        return before != now
    return any(_callback_differences({"": before}, {"": now}))


def _words(value: Any) -> str:
    """Describes a callback's configuration as text. Functions are described by name, and sets are sorted."""
    if isinstance(value, Struct):
        fields = [f.name for f in dataclasses.fields(value)]  # pyright: ignore[reportArgumentType]
        return f"{type(value).__name__}({', '.join(f'{n}={_words(mask_value(n, getattr(value, n)))}' for n in fields)})"
    if isinstance(value, dict | list | tuple | set | frozenset):
        parts = value.items() if isinstance(value, dict) else value
        inner = [_words(_without_secret(part)) for part in parts]
        return f"({', '.join(inner if isinstance(value, list | tuple) else sorted(inner))})"
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, Mapping):
        inner = [f"{name!r}: {_words(mask_value(str(name), part))}" for name, part in value.items()]
        return f"{type(value).__name__}({{{', '.join(inner)}}})"
    return mask_text(re.sub(r" at 0x[0-9a-f]+", "", repr(value)))


def _without_secret(part: Any) -> Any:
    """Masks the value of a pair, such as a header or an entry of a dict, if its name is that of a secret."""
    if isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], str):
        return part[0], mask_value(*part)
    return part
