"""Search spaces: the values that a sweep gives to its members, by path."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcb._src.utils.errors import check_int, check_number, check_seed, shown

Point = dict[str, Any]  # path -> number
Draw = Callable[[np.random.Generator], float | int]  # draws a value


def grid(over: Mapping[str, Iterable[Any]]) -> list[Point]:
    """Returns every combination of the values; the last path varies fastest.

    Args:
        over: path -> its values.

    Returns:
        The points, each a dict of path -> value.

    Example:
        >>> import jaxcb as jc
        >>> jc.search.grid({"seed": range(2), "optimizer.learning_rate": [0.1, 0.2]})[1]
        {'seed': 0, 'optimizer.learning_rate': 0.2}
    """
    values = {path: _listed(path, column) for path, column in _paths("grid", over).items()}
    return [dict(zip(values, column, strict=True)) for column in itertools.product(*values.values())]


def draws(n: int, over: Mapping[str, Draw | Iterable[Any]], *, seed: int = 0) -> list[Point]:
    """Returns points drawn at random, each path independently.

    Args:
        n: number of points.
        over: path -> how to draw its value: `uniform`, `log_uniform`, `integers`, any function of a
            `numpy.random.Generator`, or a list to choose from.
        seed: seed of the draws. Each path has its own random stream, so that adding a path or more points changes no
            other value.

    Returns:
        The points, each a dict of path -> value.

    Example:
        >>> import jaxcb as jc
        >>> points = jc.search.draws(3, {"optimizer.learning_rate": jc.search.log_uniform(1e-4, 1e-1)}, seed=1)
        >>> all(1e-4 <= point["optimizer.learning_rate"] <= 1e-1 for point in points)
        True

    Source: random search, Bergstra and Bengio, JMLR 13 (2012).
    """
    n, seed = check_int("draws", "n", n, least=1, concrete=True), check_seed("draws", seed)
    columns: dict[str, list[Any]] = {}
    for path, how in _paths("draws", over).items():
        rng = np.random.default_rng([seed, *path.encode()])
        if callable(how):
            columns[path] = [how(rng) for _ in range(n)]
        else:
            known = _listed(path, how)
            if not known:
                raise ValueError(f"draws: over[{path!r}] is empty, so there is nothing to choose from.")
            columns[path] = [known[int(rng.integers(len(known)))] for _ in range(n)]
    return [{path: column[i] for path, column in columns.items()} for i in range(n)]


def uniform(low: float, high: float) -> Draw:
    """Draws uniformly from the interval [low, high), for `draws`."""
    low, high = _check_interval("uniform", low, high)
    return lambda rng: float(rng.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """Draws log-uniformly from an interval, for `draws`; for learning rates and decays."""
    low, high = _check_interval("log_uniform", low, high)
    if low <= 0:
        raise ValueError(f"log_uniform: low must be above 0, got {low}.")
    return lambda rng: float(math.exp(rng.uniform(math.log(low), math.log(high))))


def integers(low: int, high: int) -> Draw:
    """Draws an integer from `low` to `high`, both included, for `draws`."""
    low, high = check_int("integers", "low", low, least=-(2**62)), check_int("integers", "high", high, least=-(2**62))
    _check_interval("integers", low, high)
    if high >= 2**62:
        raise ValueError(f"integers: high must be below {2**62}, got {high}.")
    return lambda rng: int(rng.integers(low, high + 1))


def as_points(over: Any) -> list[Point]:
    """Returns the points of the user's `over` argument: a dict is a grid, a list holds points.

    Raises:
        TypeError: for another type, or a value that is not a number; the message names it.
        ValueError: if there are no points, or points with different paths.
    """
    if isinstance(over, Mapping):
        points = grid(over)
    elif isinstance(over, Sequence) and not isinstance(over, str) and all(isinstance(p, Mapping) for p in over):
        points = [dict(point) for point in over]
    else:
        raise TypeError(
            "over= takes a dict of paths to values (a grid), a list of points, or jc.search.draws(n, {...}), got "
            f"{type(over).__name__}."
        )
    if not points:
        raise ValueError("over= has no points, so there is nothing to train.")
    paths = points[0].keys()
    if not paths:
        raise ValueError("over= names no path, so that all members would be equal. Use fit for a single run.")
    for number, point in enumerate(points):
        if point.keys() != paths:
            other = sorted(point.keys() ^ paths)
            raise ValueError(f"over: points {number} and 0 differ in their paths; only one has {', '.join(other)}.")
        for path, value in point.items():
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise TypeError(
                    f"over: {path!r} has the value {value!r}, a {type(value).__name__}, not a number. Members of "
                    "a sweep differ only in numbers; run one sweep for each value that is not a number."
                )
    return [{path: _python(value) for path, value in point.items()} for point in points]


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.number) else value


def _listed(path: str, values: Any) -> list[Any]:
    kinds = str | bytes | Mapping | set | frozenset  # a set has no order, so members would change from run to run
    if isinstance(values, kinds) or not isinstance(values, Iterable) or getattr(values, "shape", None) == ():
        raise TypeError(f"over: {path!r} needs a list of values, got {shown(values)}.")
    return list(values)


def _paths(owner: str, over: Any) -> Mapping[str, Any]:
    """Checks for a mapping of paths.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(over, Mapping):
        raise TypeError(f"{owner}: over must be a dict of paths to values, got {shown(over)}.")
    for path in over:
        if not isinstance(path, str) or not path:
            raise TypeError(f"{owner}: over has the path {shown(path)}, expected a string such as 'learning_rate'.")
    return over


def _check_interval(owner: str, low: Any, high: Any) -> tuple[Any, Any]:
    low, high = check_number(owner, "low", low), check_number(owner, "high", high)
    if not low < high:
        raise ValueError(f"{owner}: low must be below high, got {low} and {high}.")
    return low, high
