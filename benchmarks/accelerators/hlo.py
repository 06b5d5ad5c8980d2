"""A small parser of compiled HLO text, and the facts about a training step that can be read from it.

Only what the checks need is parsed: the computations of a module, their instructions with shapes and operands, and
which computations an instruction runs. It needs no package, so that its tests are everyday tests.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

_BITS = re.compile(r"(\d+)")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+(?:[a-z]\w*)?)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_ASSIGNED = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([a-z][\w\-]*)\(")

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
TRANSFERS = ("infeed", "outfeed", "send", "recv")
# no work of their own: names of values, and the ends of asynchronous operations that are counted at their start
_QUIET = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "domain",
}
# custom calls of the TPU compiler that reserve memory or state a fact
_QUIET_CALLS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound"}
_HOST_SPACE = "S(5)"  # the memory space of the host, in a layout


@dataclass(frozen=True)
class Shape:
    """One array of a result.

    Attributes:
        dtype: such as "f32".
        dims: its dimensions.
        space: memory space of the layout, such as "S(1)"; empty for the main memory of the device.
    """

    dtype: str
    dims: tuple[int, ...]
    space: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in bytes; a boolean takes one, and half a byte counts as one."""
        bits = _BITS.search(self.dtype)
        return self.size * max(int(bits.group(1)) // 8 if bits else 1, 1)


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: its name.
        opcode: such as "fusion".
        shapes: the arrays of its result; several for a tuple.
        operands: names of its operands.
        rest: everything behind the operands.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str

    def attribute(self, name: str) -> tuple[str, ...]:
        """Returns the computations that an attribute names, such as `body=%a` or `branch_computations={%a, %b}`."""
        found = re.search(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest)
        return () if found is None else tuple(part.strip(" {}%") for part in found.group(1).split(","))

    @functools.cached_property
    def runs(self) -> tuple[str, ...]:
        """The computations that it runs once: what it calls, or the branches of which it takes one."""
        if self.opcode == "conditional":
            pairs = (*self.attribute("true_computation"), *self.attribute("false_computation"))
            return pairs + self.attribute("branch_computations")
        if self.opcode in ("call", "async-start"):
            return self.attribute("to_apply") + self.attribute("calls")
        return ()

    @property
    def fused(self) -> tuple[str, ...]:
        """The computation of a fusion, whose instructions are one kernel."""
        return self.attribute("calls") if self.opcode == "fusion" else ()

    @property
    def collective(self) -> str | None:
        """The kind of collective that it is or starts."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def is_kernel(self) -> bool:
        """Whether it is work for the device in the order of the program: no copy, no collective, no control flow."""
        if self.opcode in _QUIET or self.opcode in ("while", "conditional", "call", "copy"):
            return False
        if self.opcode.endswith(("-start", "-done", "-update")) or self.collective:
            return False
        return not (self.opcode == "custom-call" and _target(self) in _QUIET_CALLS)


def _target(instruction: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
    return found.group(1) if found else ""


@dataclass
class Module:
    """A compiled module.

    Attributes:
        computations: name -> instructions in their order.
        entry: name of the computation that a dispatch runs.
    """

    computations: dict[str, list[Instruction]] = field(default_factory=dict)
    entry: str = ""

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Parses the text of a compiled module.

        Raises:
            ValueError: for a text without an entry computation.
        """
        module, current = cls(), None
        for line in text.splitlines():
            head = None if line.startswith(" ") else _HEAD.match(line)
            if head is not None:
                current = module.computations[head.group(2)] = []
                module.entry = head.group(2) if head.group(1) else module.entry
            elif line.startswith("}"):
                current = None
            elif current is not None:
                instruction = _parse(line.strip())
                if instruction is not None:
                    current.append(instruction)
        if not module.entry:
            raise ValueError("this text has no ENTRY computation: pass what `compiled.as_text()` returns.")
        return module

    def within(self, name: str, *, loops: bool = False, fusions: bool = True) -> Iterator[Instruction]:
        """Yields the instructions that one run of a computation reaches.

        Args:
            name: the computation.
            loops: whether to go into loops.
            fusions: whether to go into fusions, whose instructions are no kernels of their own.
        """
        for instruction in self.computations[name]:
            yield instruction
            inner = list(instruction.runs) + (list(instruction.fused) if fusions else [])
            if loops and instruction.opcode == "while":
                inner += instruction.attribute("body")
            for other in inner:
                yield from self.within(other, loops=loops, fusions=fusions)

    def has_known_count(self, loop: Instruction) -> bool:
        """Returns whether XLA knows how often a loop runs.

        XLA for GPUs writes the count into the configuration of the loop. Otherwise a condition that compares a counter
        with a constant, and nothing else, says the same.
        """
        if '"known_trip_count"' in loop.rest:
            return True
        (condition,) = loop.attribute("condition")
        kinds = Counter(i.opcode for i in self.within(condition) if i.opcode != "fusion")
        simple = {"parameter", "get-tuple-element", "constant", "compare", "bitcast", "copy"}
        return set(kinds) <= simple and kinds["compare"] == 1 and kinds["constant"] == 1

    def is_copy(self, instruction: Instruction) -> bool:
        """Returns whether an instruction only copies an array within one memory, also as a fusion of its own.

        A copy between the memories of a device, such as the prefetch of a TPU, is no copy in this sense.
        """
        if instruction.opcode == "copy-start":
            return instruction.shapes[0].space == instruction.shapes[1].space
        if instruction.opcode == "copy":
            spaces = {shape.space for name in instruction.operands for shape in self._shapes.get(name, ())}
            return not spaces or instruction.shapes[0].space in spaces
        if instruction.opcode != "fusion":
            return False
        kinds = {i.opcode for i in self.within(*instruction.fused)}
        return "copy" in kinds and kinds <= {"parameter", "copy", "bitcast", "tuple", "get-tuple-element"}

    def bytes_taken(self, instruction: Instruction) -> int:
        """Returns the bytes of an instruction's operands."""
        return sum(shape.bytes for name in instruction.operands for shape in self._shapes[name])

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[Shape, ...]]:
        return {i.name: i.shapes for instructions in self.computations.values() for i in instructions}


def _parse(line: str) -> Instruction | None:
    """Parses one line; None if it is no instruction."""
    assigned = _ASSIGNED.match(line)
    if assigned is None:
        return None
    end = _end_of_shape(line, assigned.end())
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        return None
    close = _closing(line, opcode.end() - 1)
    shapes = tuple(_shape(*found.groups()) for found in _ARRAY.finditer(line, assigned.end(), end))
    operands = tuple(_NAME.findall(line, opcode.end(), close))
    return Instruction(assigned.group(1), opcode.group(1), shapes, operands, line[close + 1 :].lstrip(","))


def _shape(dtype: str, dims: str, layout: str | None) -> Shape:
    space = re.search(r"S\(\d+\)", layout or "")
    return Shape(dtype, tuple(int(n.lstrip("<=")) for n in dims.split(",") if n), space.group() if space else "")


def _end_of_shape(line: str, start: int) -> int:
    """Returns where the type of a result ends: a tuple in parentheses, or one array with its layout."""
    if line[start] == "(":
        return _closing(line, start) + 1
    end = line.index("]", start) + 1 if "[" in line[start : line.find("(", start)] else line.find(" ", start)
    return line.index("}", end) + 1 if line[end : end + 1] == "{" else end


def _closing(line: str, start: int) -> int:
    """Returns the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(line, start):
        depth += 1 if match.group() == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"unbalanced parentheses in an instruction: {line[:200]}")


@dataclass(frozen=True)
class StepFacts:
    """What one training step of a compiled program consists of.

    Attributes:
        dynamic_loops: loops whose trip count is unknown and that run once a step: one directly around the step (its
            condition is evaluated at each step), and those in it.
        branches: conditionals in the step, and one directly around it.
        kernels: kernels and library calls; a branch counts its longest side, and a loop in the step its body once.
        copies: copies of a complete weight or optimizer moment within the step.
        small_copies: other copies within the step.
        transfers: transfers between host and device in the whole program, besides its arguments and results.
        collectives: kind -> number of arrays that a step exchanges.
        exchanged: bytes of the arrays that the collectives of a step take.
        copies_elsewhere: copies of a complete weight or moment outside of the step: before, between and after steps.
    """

    dynamic_loops: int
    branches: int
    kernels: int
    copies: int
    small_copies: int
    transfers: int
    collectives: dict[str, int]
    exchanged: int
    copies_elsewhere: int


def step_facts(text: str, mark: str, weights: Collection[tuple[int, ...]], *, scalar_core: bool = False) -> StepFacts:
    """Reads the facts about a training step from the text of a compiled program.

    The step is the body of the innermost loop that contains operations with the mark, not counting loops inside of the
    step. Where a program contains several steps, such as one for a smaller last batch, the first in a loop counts.

    Args:
        text: what `compiled.as_text()` returns.
        mark: a `jax.named_scope` around something that a step does once, such as the optimizer's update.
        weights: shapes of the arrays whose copies count as copies of a weight.
        scalar_core: whether the device computes single numbers beside its kernels, as a TPU does.

    Raises:
        ValueError: if no loop contains the mark.
    """
    module = Module.parse(text)
    path = _path_to_step(module, mark)
    if path is None:
        raise ValueError(
            f"no loop of the program contains an operation in the scope {mark!r}: wrap the optimizer's update in "
            "jax.named_scope, and pass a program that runs several steps."
        )
    around = path[-1]
    (body,) = around.attribute("body")
    inside = list(module.within(body, loops=True, fusions=False))
    loops = [i for i in inside if i.opcode == "while"]
    dynamic = sum(not module.has_known_count(loop) for loop in loops) + (not module.has_known_count(around))

    def is_whole(instruction: Instruction) -> bool:
        return module.is_copy(instruction) and any(s.dims in weights for s in instruction.shapes)

    copies = sum(map(is_whole, inside))
    everywhere = list(module.within(module.entry, loops=True, fusions=False))
    collectives, exchanged = Counter[str](), 0
    for instruction in inside:
        if instruction.collective:
            collectives[instruction.collective] += len(instruction.operands)
            exchanged += module.bytes_taken(instruction)
    return StepFacts(
        dynamic_loops=dynamic,
        branches=sum(i.opcode == "conditional" for i in inside),
        kernels=_kernels(module, body, scalar_core),
        copies=copies,
        small_copies=sum(map(module.is_copy, inside)) - copies,
        transfers=sum(_is_transfer(i) for i in everywhere),
        collectives=dict(sorted(collectives.items())),
        exchanged=exchanged,
        copies_elsewhere=sum(map(is_whole, everywhere)) - copies,
    )


def _is_transfer(instruction: Instruction) -> bool:
    if instruction.opcode.removesuffix("-done") in TRANSFERS:
        return not instruction.opcode.endswith("-done")
    to_host = any(s.space == _HOST_SPACE for s in instruction.shapes)
    moves = instruction.opcode in ("copy", "copy-start", "fusion", "async-start")
    callback = instruction.opcode == "custom-call" and "callback" in _target(instruction)
    return callback or (moves and to_host)


def _kernels(module: Module, name: str, scalar_core: bool) -> int:
    """Counts the kernels of one run of a computation."""
    count = 0
    for instruction in module.computations[name]:
        if instruction.opcode == "while":
            count += _kernels(module, *instruction.attribute("body"), scalar_core)
        elif instruction.opcode == "conditional":
            count += max(_kernels(module, branch, scalar_core) for branch in instruction.runs)
        elif instruction.runs:
            count += sum(_kernels(module, called, scalar_core) for called in instruction.runs)
        elif instruction.is_kernel and not module.is_copy(instruction):
            count += not (scalar_core and all(shape.size == 1 for shape in instruction.shapes))
    return count


def _path_to_step(module: Module, mark: str) -> list[Instruction] | None:
    """Returns the loops from the entry to the step, the innermost last; None if there is no such loop."""

    def find(name: str) -> list[Instruction] | None:
        for instruction in module.within(name, fusions=False):
            if instruction.opcode == "while":
                deeper = find(*instruction.attribute("body"))
                if deeper is not None:
                    return [instruction, *deeper]
        # last, since XLA may have moved some operations of the step in front of its loop
        return [] if any(mark in i.rest for i in module.within(name)) else None

    return find(module.entry) or None
