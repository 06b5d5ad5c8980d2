"""`Summary`: a model's arrays, their sizes and their costs, as a value that can be printed."""

import dataclasses
import io
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxcb._src.inspection.traced_step import BATCH, Flops, TracedStep, count_flops
from jaxcb._src.models.adapt import adapt
from jaxcb._src.models.trainable import Filter, variable_types
from jaxcb._src.training.train_state import TrainState
from jaxcb._src.training.train_step import EvalStep
from jaxcb._src.utils.errors import check_int
from jaxcb._src.utils.flat_jit import FlatJit, eval_shape
from jaxcb._src.utils.names import leaf_name, matches

_PARTS = ("params", "frozen", "model_state")


class Line(NamedTuple):
    """One array of a model, or a group of arrays.

    Attributes:
        path: its path, such as `encoder/kernel`; of a group, the common part.
        shape: None for a group.
        dtype: its dtype; of a group, each dtype once.
        parameters: number of elements.
        bytes: size in bytes.
        flops: FLOPs of one forward pass on a batch; None without a step.
        trainable: whether it is trained; batch statistics are not.
        arrays: number of arrays.
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: str
    parameters: int
    bytes: int
    flops: float | None
    trainable: bool
    arrays: int = 1


@dataclasses.dataclass(frozen=True)
class Summary:
    """The arrays of a model with their sizes and costs.

    Attributes:
        lines: the trained arrays, then the others.
        between: FLOPs of a forward pass without parameters as operands, such as attention scores; None
            without a step.
        step: FLOPs of everything that was traced, such as a training step with its gradients; None without a step.
        training_bytes: bytes that training adds to the model: gradients and optimizer state; None without an optimizer.
    """

    lines: tuple[Line, ...]
    between: float | None = None
    step: float | None = None
    training_bytes: int | None = None

    @property
    def parameters(self) -> int:
        """Number of elements of all arrays."""
        return sum(line.parameters for line in self.lines)

    @property
    def trainable(self) -> int:
        """Number of elements that are trained."""
        return sum(line.parameters for line in self.lines if line.trainable)

    @property
    def bytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(line.bytes for line in self.lines)

    @property
    def flops(self) -> float | None:
        """FLOPs of one forward pass on a batch: matrix products and convolutions."""
        if self.between is None:
            return None
        return math.fsum(line.flops or 0.0 for line in self.lines) + self.between

    def grouped(self, depth: int | None) -> "Summary":
        """Returns one line for all arrays that share the first `depth` parts of their paths; no grouping if None."""
        if depth is None:
            return self
        groups: dict[tuple[bool, str], list[Line]] = {}
        for line in self.lines:
            path = "/".join(line.path.split("/")[:depth])
            groups.setdefault((line.trainable, path), []).append(line)
        lines = tuple(lines[0] if len(lines) == 1 else _group(path, lines) for (_, path), lines in groups.items())
        return dataclasses.replace(self, lines=lines)

    def __str__(self) -> str:

        return as_text(self)


def _group(path: str, lines: list[Line]) -> Line:
    counted = [line.flops for line in lines if line.flops is not None]
    return Line(
        path,
        None,
        ", ".join(dict.fromkeys(line.dtype for line in lines)),
        sum(line.parameters for line in lines),
        sum(line.bytes for line in lines),
        math.fsum(counted) if counted else None,
        lines[0].trainable,
        sum(line.arrays for line in lines),
    )


def summarize(train_state: Any, traced: TracedStep | None = None, frozen: Sequence[str] = ()) -> Summary:
    """Makes the summary of a train state.

    Args:
        train_state: arrays, or their shapes and dtypes.
        traced: a step; None leaves out the FLOPs.
        frozen: patterns of paths that the run does not train.

    Returns:
        The `Summary`.
    """
    flops = None if traced is None else _flops(traced)
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path({p: getattr(train_state, p) for p in reversed(_PARTS)}):
        key = leaf_name(path)
        part, _, name = key.partition("/")
        flop_count = None if flops is None else flops.by_parameter[key]
        size = math.prod(leaf.shape)
        line = Line(
            name or part,
            tuple(leaf.shape),
            str(leaf.dtype),
            size,
            size * leaf.dtype.itemsize,
            flop_count,
            part == "params" and not any(matches(pattern, name) for pattern in frozen),
        )
        lines.append(line)
    lines.sort(key=lambda line: not line.trainable)
    training = None
    if train_state.tx is not None:
        training = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(_added(train_state)))
    if flops is None:
        return Summary(tuple(lines), training_bytes=training)
    return Summary(tuple(lines), flops.between, flops.step, training)


def _added(train_state: Any) -> Any:
    """Returns what training adds to the model: gradients and optimizer state, or their shapes."""
    opt_state = train_state.opt_state
    if opt_state is None:
        opt_state = eval_shape(train_state.tx.init, train_state.params)
    return train_state.params, opt_state


def _flops(traced: TracedStep) -> Flops:
    inputs: list[Any] = [_role(leaf_name(path)) for path, _ in jax.tree_util.tree_leaves_with_path(traced.state)]
    inputs += [BATCH] * len(jax.tree.leaves(traced.batch))
    return count_flops(traced.jaxpr, inputs)


def _role(name: str) -> str | None:
    return name if name.split("/")[0] in _PARTS else None


_PREFIXES = {1000: ("", "k", "M", "G", "T", "P"), 1024: ("", "Ki", "Mi", "Gi", "Ti", "Pi")}


def as_text(summary: Summary) -> str:
    """Formats the table: on a terminal within its width and in colour, elsewhere as wide as needed."""
    from rich.console import Console

    tty = sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=tty, width=None if tty else 10_000)
    with console.capture() as capture:
        console.print(table(summary))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([*(line for line in lines if line), totals(summary)])


def table(summary: Summary) -> Any:
    """Returns a summary as a `rich.table.Table`."""
    from rich import box
    from rich.table import Table

    counted = summary.flops is not None
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("path", "shape", "dtype"):
        out.add_column(name, overflow="fold")
    for name in ("parameters", "bytes", *(["FLOPs"] if counted else [])):
        out.add_column(name, justify="right", no_wrap=True)
    for trainable in (True, False):
        lines = [line for line in summary.lines if line.trainable is trainable]
        if lines and not trainable:
            out.add_section()
            out.add_row("not trained:")
        for line in lines:
            out.add_row(*_cells(line)[: len(out.columns)], style=None if trainable else "dim")
    if summary.between:
        out.add_section()
        out.add_row("between activations:", "", "", "", "", shown(summary.between, ""))
    return out


def _cells(line: Line) -> tuple[str, ...]:
    shape = f"{line.arrays} arrays" if line.shape is None else str(line.shape)
    flops = "" if not line.flops else shown(line.flops, "")
    return line.path, shape, line.dtype, f"{line.parameters:,}", shown(line.bytes, "B", base=1024), flops


def totals(summary: Summary) -> str:
    """Returns the totals as a line."""
    parts = [
        f"{summary.parameters:,} parameters",
        f"{summary.trainable:,} trained, {summary.parameters - summary.trainable:,} not",
        shown(summary.bytes, "B", base=1024),
    ]
    if summary.training_bytes is not None:
        parts.append(f"{shown(summary.training_bytes, 'B', base=1024)} of gradients and optimizer state")
    if summary.flops is not None:
        parts.append(f"forward pass {shown(summary.flops, 'FLOP')} per batch")
        if summary.step is not None and summary.step > summary.flops:
            parts.append(f"training step {shown(summary.step, 'FLOP')}")
    return " · ".join(parts)


def shown(quantity: float, unit: str, *, base: int = 1000) -> str:
    """Formats a quantity with a unit prefix: `shown(1.5e9, "FLOP")` is `1.50 GFLOP`."""
    names, power = _PREFIXES[base], 0
    while quantity >= base and power < len(names) - 1:
        quantity, power = quantity / base, power + 1
    digits = 0 if not power else max(0, 2 - int(math.log10(quantity)))
    return f"{quantity:,.{digits}f} {names[power]}{unit}"


def model_summary(
    model: Any,
    loss_fn: Callable[..., Any] | None = None,
    batch: Any = None,
    *,
    depth: int | None = None,
    trainable: Filter | None = None,
) -> Summary:
    """Summarizes a model: its arrays, their sizes, and the FLOPs of a forward pass.

    Args:
        model: as in `fit`.
        loss_fn: as in `fit`; traced for the FLOPs, but not run.
        batch: a batch of data, or its shapes and dtypes (`jax.ShapeDtypeStruct`).
        depth: the number of leading path parts to group arrays by, one line per group; None for one line per array.
        trainable: which parameters are trained, as in `fit`.

    Returns:
        A `Summary`: `lines`, `parameters`, `trainable`, `bytes`, `flops`. `str` formats it as the table that
        `ModelSummary` prints.

    Raises:
        ValueError: if only one of `loss_fn` and `batch` is given.

    Example:
        >>> import jaxcb as jc, jax.numpy as jnp
        >>> loss_fn = lambda params, x: jnp.mean((x @ params["w"] + params["b"]) ** 2)
        >>> params = {"w": jnp.ones((3, 4)), "b": jnp.ones((1, 4))}
        >>> summary = jc.model_summary(params, loss_fn, jnp.ones((5, 3)))
        >>> summary.parameters, summary.bytes, summary.flops
        (16, 64, 120.0)

    Source: `keras.Model.summary`; `flax.nnx.tabulate`.
    """
    if (loss_fn is None) is not (batch is None):
        given, missing = ("a batch", "loss_fn") if loss_fn is None else ("a loss_fn", "batch")
        raise ValueError(f"model_summary got {given} but no {missing}; pass both to count FLOPs, or neither.")
    depth = None if depth is None else check_int("model_summary", "depth", depth, least=1, concrete=True)
    adapter = adapt(model, trained=variable_types(trainable))
    params, model_state, rngs = adapter.split()
    state = TrainState.create(params=params, model_state=model_state, rngs=rngs, adapter=adapter, trainable=trainable)
    if loss_fn is None:
        return summarize(state).grouped(depth)
    traced = FlatJit(EvalStep(loss_fn)).trace(state, batch)
    return summarize(state, TracedStep.of(traced, state, batch, lambda metrics: metrics)).grouped(depth)
