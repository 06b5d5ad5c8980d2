"""Measures and draws the structure of `jaxcb/_src`.

    python tools/house.py                     # prints the figures; exits with 1 where a limit is exceeded
    python tools/house.py --draw docs/house.svg

Modules and imports are those that import-linter's graph (grimp) finds, so that picture, figures and contracts agree.
"""

import argparse
import collections
import statistics
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
SRC = "jaxcb._src"
SHORT = 60  # lines; a module below is a sliver
# bottom to top, as the contracts in pyproject.toml have them
ROWS = [
    ["utils"],
    ["core", "distributed", "sharding", "models", "plotting", "storage"],
    ["history"],
    ["training"],
    ["inspection"],
    ["writers"],
    ["callbacks"],
    ["data"],
    ["checkpointing"],
    ["loop"],
    ["fit"],
    ["sweep"],
    ["replay"],
    ["testing"],
]
LIMITS = {
    "modules": (0, 170),
    "median lines": (120, 10_000),
    f"percent under {SHORT} lines, outside callbacks": (0, 12),
    "most modules in one folder, outside callbacks": (0, 25),
    "circles": (0, 0),
}


def modules() -> dict[str, int]:
    """Module -> lines, without `__init__` and public faces."""
    paths = [path for path in (ROOT / "jaxcb/_src").rglob("*.py") if path.name != "__init__.py"]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): len(path.read_text().splitlines()) for path in paths
    }


def figures(graph: grimp.ImportGraph) -> dict[str, float]:
    """The figures that the limits are for, and the size of the public face."""
    lines = modules()
    others = {name: n for name, n in lines.items() if not name.startswith(f"{SRC}.callbacks.")}
    folders = collections.Counter(name.rpartition(".")[0] for name in others)
    import jaxcb

    return {
        "modules": len(lines),
        "median lines": statistics.median(lines.values()),
        f"percent under {SHORT} lines, outside callbacks": round(
            100 * sum(n < SHORT for n in others.values()) / len(others), 1
        ),
        "most modules in one folder, outside callbacks": max(folders.values()),
        "circles": circles(graph, set(lines)),
        "names at the top level": len(jaxcb.__all__),
        "lines": sum(lines.values()),
        "longest module": max(lines.values()),
    }


def circles(graph: grimp.ImportGraph, names: set[str]) -> int:
    """The number of modules that import themselves by way of others."""
    imports = {name: graph.find_modules_directly_imported_by(name) for name in names}
    return sum(any(graph.chain_exists(importer=other, imported=name) for other in imports[name]) for name in names)


def folder(name: str) -> str:
    """The folder of `_src`, or the module right below it, that a module belongs to."""
    return name.removeprefix(f"{SRC}.").split(".")[0]


def draw(graph: grimp.ImportGraph, path: Path) -> None:
    """Draws the folders, bottom to top, and which imports which; what follows from other arrows is left out."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    lines = modules()
    size: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    imports: dict[str, set[str]] = collections.defaultdict(set)
    for name, n in lines.items():
        size[folder(name)][0] += 1
        size[folder(name)][1] += n
        for other in graph.find_modules_directly_imported_by(name):
            if other.startswith(f"{SRC}.") and folder(other) != folder(name):
                imports[folder(name)].add(folder(other))
    reached = {name: _reached(name, imports) for name in size}
    direct = {
        name: {other for other in found if not any(other in reached[third] for third in found - {other})}
        for name, found in imports.items()
    }
    place = {
        name: ((i - (len(row) - 1) / 2) * 2.3, height) for height, row in enumerate(ROWS) for i, name in enumerate(row)
    }
    figure, axes = plt.subplots(figsize=(9, 9))
    axes.set_axis_off()
    axes.set_xlim(-6, 6)
    axes.set_ylim(-0.6, len(ROWS) - 0.4)
    for name, found in direct.items():
        for other in found:
            (x, y), (x2, y2) = place[name], place[other]
            bend = 0.0 if y - y2 < 1.5 else 0.25
            axes.annotate(
                "",
                (x2, y2 + 0.27),
                (x, y - 0.27),
                arrowprops={"arrowstyle": "->", "color": "#888888", "connectionstyle": f"arc3,rad={bend}"},
            )
    for name, (x, y) in place.items():
        count, n = size[name]
        axes.text(
            x,
            y,
            f"{name}\n{count} modules, {n} lines" if count > 1 else f"{name}.py\n{n} lines",
            ha="center",
            va="center",
            fontsize=9,
            bbox={"boxstyle": "round,pad=0.35", "facecolor": "#eef3fa", "edgecolor": "#4a6fa5"},
        )
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


def _reached(name: str, imports: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(imports.get(name, ()))
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting.extend(imports.get(other, ()))
    return found


def main() -> int:
    """Prints the figures, or draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", type=Path, help="an image file to draw the folders to")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph("jaxcb")
    if options.draw:
        draw(graph, options.draw)
        return 0
    exceeded = False
    for name, value in figures(graph).items():
        low, high = LIMITS.get(name, (0, float("inf")))
        bad = not low <= value <= high
        exceeded = exceeded or bad
        limit = "" if name not in LIMITS else f"   (at most {high})" if low == 0 else f"   (at least {low})"
        print(f"{name:50} {value:>8g}{limit}{'   EXCEEDED' if bad else ''}")
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
