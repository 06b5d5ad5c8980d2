"""`Summary`: a model's arrays, what they hold and what they cost, as a value that others print."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax

from jaxcb._flops import BATCH, Flops, count_flops
from jaxcb._paths import leaf_name
from jaxcb._traced_step import TracedStep

_PARTS = ("params", "model_state")


class Line(NamedTuple):
    """One array of a model, or a group of them.

    Attributes:
        path: its path, such as `encoder/kernel`; of a group what its arrays share.
        shape: None for a group.
        dtype: those of a group, each once.
        parameters: numbers in it.
        bytes: that they take.
        flops: of one forward pass on a batch; None where no step is known.
        trainable: whether the optimizer has it; batch statistics it has not.
        arrays: how many it stands for.
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
    """What a model is made of.

    Attributes:
        lines: the trained arrays, then the others.
        between: FLOPs of a forward pass that no parameter is an operand of, such as an attention's scores; None
            where no step is known.
        step: FLOPs of all that was traced, such as a training step with its gradients; None likewise.
    """

    lines: tuple[Line, ...]
    between: float | None = None
    step: float | None = None

    @property
    def parameters(self) -> int:
        """Numbers in all arrays."""
        return sum(line.parameters for line in self.lines)

    @property
    def trainable(self) -> int:
        """Numbers that are trained."""
        return sum(line.parameters for line in self.lines if line.trainable)

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(line.bytes for line in self.lines)

    @property
    def flops(self) -> float | None:
        """FLOPs of one forward pass on a batch: matrix products and convolutions."""
        if self.between is None:
            return None
        return math.fsum(line.flops or 0.0 for line in self.lines) + self.between

    def grouped(self, depth: int | None) -> "Summary":
        """Returns one line for all arrays that share the first `depth` parts of their paths; all where None."""
        if depth is None:
            return self
        groups: dict[tuple[bool, str], list[Line]] = {}
        for line in self.lines:
            path = "/".join(line.path.split("/")[:depth])
            groups.setdefault((line.trainable, path), []).append(line)
        lines = tuple(lines[0] if len(lines) == 1 else _group(path, lines) for (_, path), lines in groups.items())
        return dataclasses.replace(self, lines=lines)

    def __str__(self) -> str:
        from jaxcb._summary_table import as_text  # rich is slow to import

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


def summarize(train_state: Any, traced: TracedStep | None = None) -> Summary:
    """Makes the summary of a train state, or of its shapes.

    Args:
        train_state: arrays, or shapes and dtypes in their place.
        traced: a step; None leaves out the FLOPs.

    Returns:
        The `Summary`.
    """
    flops = None if traced is None else _flops(traced)
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path({p: getattr(train_state, p) for p in reversed(_PARTS)}):
        key = leaf_name(path)
        part, _, name = key.partition("/")
        own = None if flops is None else flops.by_parameter[key]
        size = math.prod(leaf.shape)
        line = Line(
            name or part, tuple(leaf.shape), str(leaf.dtype), size, size * leaf.dtype.itemsize, own, part == _PARTS[0]
        )
        lines.append(line)
    lines.sort(key=lambda line: not line.trainable)
    if flops is None:
        return Summary(tuple(lines))
    return Summary(tuple(lines), flops.between, flops.step)


def _flops(traced: TracedStep) -> Flops:
    inputs: list[Any] = [_role(leaf_name(path)) for path, _ in jax.tree_util.tree_leaves_with_path(traced.state)]
    inputs += [BATCH] * len(jax.tree.leaves(traced.batch))
    return count_flops(traced.jaxpr, inputs)


def _role(name: str) -> str | None:
    return name if name.split("/")[0] in _PARTS else None
