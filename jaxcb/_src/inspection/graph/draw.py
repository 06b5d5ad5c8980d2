"""`draw`: converts a jaxpr to named nodes."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from jaxcb._src.inspection.graph.calls import Call, Frames, find_call, frames_of
from jaxcb._src.utils.names import directory_of, leaf_name


def input_names(jaxpr: Any, *trees: tuple[str, Any]) -> list[str]:
    """Returns a name for each input of a jaxpr.

    Args:
        jaxpr: a closed jaxpr.
        *trees: a name and a tree of shapes for each argument that it was traced with; if not given,
            the names of the function's own arguments are used.

    Returns:
        One name per input.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> input_names(jax.make_jaxpr(lambda params, x: params["w"] * x)({"w": 1.0}, 2.0))
        ['params/w', 'x']
    """
    if trees:
        return [
            "/".join(part for part in (name, leaf_name(path)) if part)
            for name, tree in trees
            for path, _ in jax.tree_util.tree_leaves_with_path(tree)
        ]
    known = getattr(jaxpr.jaxpr.debug_info, "arg_names", None) or ()
    names = [re.sub(r"\[['\"]?(.*?)['\"]?\]", r"/\1", name or "").replace(".", "/") for name in known]
    names += [""] * (len(jaxpr.jaxpr.invars) - len(names))
    return [name or f"input_{i}" for i, name in enumerate(names)]


_VARIABLES = {"params": "Parameter", "model_state": "State", "rngs": "State"}  # inputs that belong to modules
_TRANSPARENT = ("custom_jvp_call", "custom_vjp_call", "closed_call", "core_call")  # these get no scope of their own
_LONGEST = 120  # maximum length of an attribute, in characters


class Node(NamedTuple):
    """One operation, input or output.

    Attributes:
        name: its name within the enclosing modules and functions: `Net/hidden/dot_general`.
        op: the primitive's name; "Parameter", "State", "Input", "Constant" or "Output".
        inputs: names of the nodes that it uses; `name:1` is the second result of a node.
        results: shape and dtype of each of its results.
        about: further attributes, by name.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    results: tuple[tuple[tuple[int, ...], str], ...]
    about: dict[str, str]


class _Drawn:
    """A node that is not named yet."""

    def __init__(
        self, op: str, call: Call, label: str, inputs: Sequence[Any], results: Sequence[Any], about: Any
    ) -> None:
        self.op, self.call, self.label = op, call, label
        self.inputs: list[tuple[_Drawn, int]] = [source for source in inputs if source is not None]
        self.results = tuple((tuple(r.shape), str(r.dtype)) for r in results if hasattr(r, "shape"))
        self.about: dict[str, str] = about

    @property
    def is_variable(self) -> bool:
        """Whether it belongs to a module, and its label is its path."""
        return self.op in _VARIABLES.values()


def draw(closed: core.ClosedJaxpr, inputs: Sequence[str], outputs: Mapping[str, int]) -> list[Node]:
    """Draws the operations that compute some results of a traced function.

    Operations are placed in the modules and functions that called them; a module is named by the path of its
    parameters, if it has any. Operations that the results do not depend on are left out: if the loss is drawn, the
    backward pass of a training step is not.

    Args:
        closed: a traced function.
        inputs: a name for each input; those that begin with `params/`, `model_state/` or `rngs/` belong to modules.
        outputs: name -> index of each result to draw.

    Returns:
        The nodes, each after those that it uses.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> closed = jax.make_jaxpr(lambda w, x: jnp.tanh(x @ w))(jnp.ones((3, 4)), jnp.ones((5, 3)))
        >>> for node in draw(closed, ["params/dense/w", "x"], {"y": 0}):
        ...     print(node.name, node.op, node.inputs, node.results[-1][0])
        x Input () (5, 3)
        dense/w Parameter () (3, 4)
        dense/dot_general dot_general ('x', 'dense/w') (5, 4)
        tanh tanh ('dense/dot_general',) (5, 4)
        y Output ('tanh',) (5, 4)
    """
    top = Call()
    given = [_of_input(name, var, top) for name, var in zip(inputs, closed.jaxpr.invars, strict=True)]
    walker = _Walker()
    wanted = [closed.jaxpr.outvars[i] for i in outputs.values()]
    sources = walker.walk(closed.jaxpr, [(node, 0) for node in given], top, Frames(), wanted)
    ends = [
        _Drawn("Output", top, name, [source], [var.aval], {})
        for name, var, source in zip(outputs, wanted, sources, strict=True)
    ]
    top.settle()
    return _named(_in_order(ends), top)


def _of_input(name: str, var: Any, top: Call) -> _Drawn:
    room, _, path = name.partition("/")
    if room in _VARIABLES and path:
        return _Drawn(_VARIABLES[room], top, path, [], [var.aval], {"path": path})
    return _Drawn("Input", top, name, [], [var.aval], {})


class _Walker:
    """Walks jaxprs; inner jaxprs are drawn in the place where they are called."""

    def walk(
        self, jaxpr: Any, given: Sequence[Any], within: Call, around: Frames, only: Sequence[Any] | None = None
    ) -> list[Any]:
        """Returns the sources of the results, or of `only` some: a node and its result's index; None for literals."""
        wanted: Sequence[Any] = jaxpr.outvars if only is None else only
        known = dict(zip(map(id, jaxpr.invars), given, strict=True))
        for var in jaxpr.constvars:
            known[id(var)] = (_Drawn("Constant", within, "constant", [], [var.aval], {}), 0)
        for equation in _needed(jaxpr, wanted):
            sources = [None if isinstance(v, core.Literal) else known[id(v)] for v in equation.invars]
            call = find_call(within, equation, around, outermost=within.parent is None)
            self._note_variables(call, sources)
            for var, source in zip(equation.outvars, self._equation(equation, sources, call), strict=True):
                known[id(var)] = source
        return [None if isinstance(v, core.Literal) else known[id(v)] for v in wanted]

    def _equation(self, equation: Any, sources: list[Any], call: Call) -> list[Any]:
        """Draws an equation; returns the source of each of its results."""
        name, params = equation.primitive.name, equation.params
        frames = frames_of(equation)
        if name == "while":
            body, split = params["body_jaxpr"], params["cond_nconsts"]
            scope = call.enter("while", id(equation))
            return self.walk(body.jaxpr, sources[split:], scope, frames)
        if name == "cond":
            scope = call.enter("cond", id(equation))
            ends = [
                self.walk(side.jaxpr, sources[1:], scope.enter(f"branch_{i}", i), frames)
                for i, side in enumerate(params["branches"])
            ]
            chosen = [[sources[0], *sides] for sides in zip(*ends, strict=True)]
            results = [[var.aval] for var in equation.outvars]
            return [
                (_Drawn("cond", scope, "choose", branches, r, {}), 0)
                for branches, r in zip(chosen, results, strict=True)
            ]
        inner = next((v for v in params.values() if isinstance(v, core.ClosedJaxpr | core.Jaxpr)), None)
        inner = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
        if inner is not None and len(inner.invars) == len(sources) and len(inner.outvars) == len(equation.outvars):
            scope = call
            if name not in _TRANSPARENT:
                scope = call.enter(str(params.get("name", name)).strip("_<>"), id(equation))
            return self.walk(inner, sources, scope, frames)
        node = _Drawn(name, call, name, sources, [v.aval for v in equation.outvars], _about(equation))
        return [(node, i) for i in range(len(equation.outvars))]

    @staticmethod
    def _note_variables(call: Call, sources: Sequence[Any]) -> None:
        """Records the variables that a call uses; each variable is placed in the first call that uses it."""
        for node in (source[0] for source in sources if source is not None):
            if node.is_variable:
                call.directories.append(directory_of(node.label))
                if node.call.parent is None:
                    node.call = call


def _needed(jaxpr: Any, wanted: Sequence[Any]) -> list[Any]:
    """Returns the equations that the wanted variables depend on, in order."""
    needed, found = {id(v) for v in wanted}, []
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in equation.outvars):
            found.append(equation)
            needed |= {id(v) for v in equation.invars}
    return found[::-1]


def _about(equation: Any) -> dict[str, str]:
    """Returns the literals and parameters of an equation, shortened."""
    found = {}
    literals = [str(v.val) if isinstance(v, core.Literal) else "_" for v in equation.invars]
    if any(isinstance(v, core.Literal) for v in equation.invars):
        found["operands"] = ", ".join(literals)
    for name, value in equation.params.items():
        if value is not None and not callable(value) and "jaxpr" not in name:
            found[name] = str(value)
    return {name: text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..." for name, text in found.items()}


def _in_order(ends: Sequence[_Drawn]) -> list[_Drawn]:
    """Returns the nodes that the ends depend on, each after those that it uses."""
    order: dict[int, _Drawn] = {}
    for end in ends:
        path: list[tuple[_Drawn, Iterator[Any]]] = [(end, iter(end.inputs))]
        while path:
            node, rest = path[-1]
            following = next((source for source, _ in rest if id(source) not in order), None)
            if following is None:
                order[id(node)] = node
                path.pop()
            else:
                path.append((following, iter(following.inputs)))
    return list(order.values())


def _named(nodes: Sequence[_Drawn], top: Call) -> list[Node]:
    """Names the nodes: all names differ, also from those of calls."""
    used: Counter[str] = Counter()
    scopes = {id(top): ""}
    for call, label in top.labels():
        assert call.parent is not None
        scopes[id(call)] = _fresh(used, scopes[id(call.parent.one)], label) + "/"
    names: dict[int, str] = {}
    for node in nodes:
        scope, label = scopes[id(node.call.one)], node.label
        if node.is_variable:
            label = label.rpartition("/")[2] if scope else label
        elif not scope and node.op not in ("Input", "Output"):
            scope = _beside(node)
        names[id(node)] = _fresh(used, scope, label)
    return [
        Node(
            names[id(node)],
            node.op,
            tuple(names[id(source)] + (f":{i}" if i else "") for source, i in node.inputs),
            node.results,
            node.about,
        )
        for node in nodes
    ]


def _beside(node: _Drawn) -> str:
    """Returns the scope of an operation without a known call: that of the parameters that it uses."""
    directories = {directory_of(n.label) for n, _ in node.inputs if n.is_variable}
    return f"{directories.pop()}/" if len(directories) == 1 and directories != {""} else ""


def _fresh(used: Counter[str], scope: str, label: str) -> str:
    """Returns an unused name: numbered from the second one on."""
    name = scope + re.sub(r"[^\w.\-/]", "_", label)
    used[name] += 1
    while used[name] > 1:
        numbered = f"{name}_{used[name] - 1}"
        used[numbered] += 1
        if used[numbered] == 1:
            return numbered
        used[name] += 1
    return name
