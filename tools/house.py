"""Measures and draws the structure of `jaxcb/_src`.

    python tools/house.py                     # prints the figures; exits with 1 if a limit is exceeded
    python tools/house.py --draw docs/house.svg

Modules and imports are those that import-linter's graph (grimp) finds, so that picture, figures and contracts agree.
"""

import argparse
import collections
import itertools
import random
import statistics
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
SRC = "jaxcb._src"
SHORT = 60  # lines; a shorter module is hardly worth a file
BOX = (2.2, 0.5)  # width and height of a folder in the picture; a row is 1 high
LIMITS = {
    "modules": (0, 260),
    "median lines": (120, 10_000),
    f"percent under {SHORT} lines, outside callbacks": (0, 12),
    "most modules in one folder, outside callbacks": (0, 25),
    "import cycles": (0, 0),
}


def modules() -> dict[str, int]:
    """Returns module -> lines, without `__init__` and public faces."""
    paths = [path for path in (ROOT / "jaxcb/_src").rglob("*.py") if path.name != "__init__.py"]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): len(path.read_text().splitlines()) for path in paths
    }


def figures(graph: grimp.ImportGraph) -> dict[str, float]:
    """Returns the figures that have limits, and the size of the public face."""
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
        "import cycles": cycles(graph, set(lines)),
        "names at the top level": len(jaxcb.__all__),
        "lines": sum(lines.values()),
        "longest module": max(lines.values()),
    }


def cycles(graph: grimp.ImportGraph, names: set[str]) -> int:
    """Returns the number of modules that import themselves through others."""
    imports = {name: graph.find_modules_directly_imported_by(name) for name in names}
    return sum(any(graph.chain_exists(importer=other, imported=name) for other in imports[name]) for name in names)


def folder(name: str) -> str:
    """Returns the folder of `_src` that a module belongs to, or the module itself where it is in none."""
    return name.removeprefix(f"{SRC}.").split(".")[0]


def folder_imports(graph: grimp.ImportGraph) -> dict[str, set[str]]:
    """Returns folder -> the folders that it imports, less those that follow from other imports."""
    imports: dict[str, set[str]] = {folder(name): set() for name in modules()}
    for name in modules():
        for other in graph.find_modules_directly_imported_by(name):
            if other.startswith(f"{SRC}.") and folder(other) != folder(name):
                imports[folder(name)].add(folder(other))
    reached: dict[str, set[str]] = {}

    def reach(name: str) -> set[str]:
        if name not in reached:
            reached[name] = imports[name].union(*(reach(other) for other in imports[name]))
        return reached[name]

    return {
        name: {other for other in found if not any(other in reach(third) for third in found - {other})}
        for name, found in imports.items()
    }


# A point of the drawing: a folder, or the place at which a long arrow (from, to) crosses a row.
Point = str | tuple[str, str]


def rows_of(imports: dict[str, set[str]]) -> list[list[Point]]:
    """Returns the rows, bottom to top: a folder is one row above the highest folder that it imports."""
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = max((height(other) + 1 for other in imports[name]), default=int(name != "utils"))
        return heights[name]

    rows: list[list[Point]] = [[] for _ in range(max(map(height, imports)) + 1)]
    for name in sorted(imports):
        rows[height(name)].append(name)
        for other in sorted(imports[name]):
            for between in range(height(other) + 1, height(name)):
                rows[between].append((name, other))
    return rows


def positions(rows: list[list[Point]], arrows: list[list[tuple[Point, int]]]) -> dict[tuple[Point, int], float]:
    """Returns (point, row) -> x: points near their neighbours, and few crossings.

    This is the usual layered drawing (Sugiyama): each row is sorted, repeatedly, by the mean position of the
    neighbours in the rows above and below. Of several random starts the one with the fewest crossings is kept.
    """
    near: dict[tuple[Point, int], list[tuple[Point, int]]] = collections.defaultdict(list)
    for arrow in arrows:
        for a, b in itertools.pairwise(arrow):
            near[a].append(b)
            near[b].append(a)
    best: tuple[float, dict[tuple[Point, int], float]] = (float("inf"), {})
    for seed in range(40):
        shuffled = random.Random(seed)
        orders = [shuffled.sample(row, len(row)) for row in rows]
        x = {(point, y): float(i) for y, row in enumerate(orders) for i, point in enumerate(row)}
        for sweep in range(20):
            for y in range(len(rows)) if sweep % 2 else reversed(range(len(rows))):
                wanted = {
                    p: statistics.mean(x[other] for other in near[p, y]) if near[p, y] else x[p, y] for p in rows[y]
                }
                order = sorted(rows[y], key=lambda p: (wanted[p], str(p)))
                x.update({(p, y): at for p, at in zip(order, _spread(order, wanted), strict=True)})
        links = [(a, b) for arrow in arrows for a, b in itertools.pairwise(arrow)]
        crossings = sum(
            a[1] == c[1] and (x[a] - x[c]) * (x[b] - x[d]) < 0 for (a, b), (c, d) in itertools.combinations(links, 2)
        )
        cost = crossings + 0.05 * sum(abs(x[a] - x[b]) for a, b in links)
        if cost < best[0]:
            best = (cost, x)
    return best[1]


def _spread(order: list[Point], wanted: dict[Point, float]) -> list[float]:
    """Returns an x for each point of a row, in order, near the wanted ones and without overlaps."""
    widths = [BOX[0] + 0.3 if isinstance(point, str) else 1.0 for point in order]
    offsets = [sum(widths[:i]) + widths[i] / 2 for i in range(len(order))]
    at = [wanted[point] - offset for point, offset in zip(order, offsets, strict=True)]
    groups = [[value] for value in at]
    merged: list[list[float]] = []
    for group in groups:  # neighbours that would overlap are moved as one group (isotonic regression)
        merged.append(group)
        while len(merged) > 1 and statistics.mean(merged[-2]) > statistics.mean(merged[-1]):
            merged[-2:] = [merged[-2] + merged[-1]]
    shifts = [statistics.mean(group) for group in merged for _ in group]
    return [shift + offset for shift, offset in zip(shifts, offsets, strict=True)]


def draw(graph: grimp.ImportGraph, path: Path) -> None:
    """Draws the folders and their imports; imports that follow from other arrows are left out."""
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path as Curve

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "house", "font.family": "sans-serif"}
    size = collections.Counter(folder(name) for name in modules())
    imports = folder_imports(graph)
    rows = rows_of(imports)
    heights = {point: y for y, row in enumerate(rows) for point in row if isinstance(point, str)}
    arrows: list[list[tuple[Point, int]]] = [
        [(name, heights[name]), *(((name, other), y) for y in reversed(range(heights[other] + 1, heights[name]))),
         (other, heights[other])]
        for name in sorted(imports) for other in sorted(imports[name])
    ]  # fmt: skip
    x = positions(rows, arrows)
    width, height = BOX
    left, right = min(x.values()) - width, max(x.values()) + width
    figure, axes = plt.subplots(figsize=(0.62 * (right - left), 0.95 * len(rows)))
    axes.set_axis_off()
    axes.set_xlim(left, right)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    for arrow in arrows:
        corners = [(x[arrow[0]], arrow[0][1] - height / 2)]
        codes = [Curve.MOVETO]
        for point in arrow[1:]:  # curves between the rows, and a straight piece where a row is crossed
            (x0, y0), (x1, y1) = corners[-1], (x[point], point[1] + height / 2 + (0.03 if point is arrow[-1] else 0.0))
            middle = (y0 + y1) / 2
            corners += [(x0, middle), (x1, middle), (x1, y1)]
            codes += [Curve.CURVE4] * 3
            if point is not arrow[-1]:
                corners.append((x1, y1 - height))
                codes.append(Curve.LINETO)
        axes.add_patch(
            FancyArrowPatch(
                path=Curve(corners, codes), arrowstyle="-|>", mutation_scale=9, color="#7a8699", linewidth=1.0
            )
        )
    for name, y in heights.items():
        axes.text(
            x[name, y],
            y,
            f"{name}\n{size[name]} modules" if size[name] > 1 else f"{name}.py",
            ha="center",
            va="center",
            fontsize=7.5,
            linespacing=1.4,
        )
        axes.add_patch(
            FancyBboxPatch(
                (x[name, y] - width / 2, y - height / 2),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor="#eef3fa",
                edgecolor="#4a6fa5",
            )
        )
    figure.savefig(
        path, bbox_inches="tight", dpi=110, **({"metadata": {"Date": None}} if path.suffix == ".svg" else {})
    )


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
