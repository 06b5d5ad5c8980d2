"""One HTML page without scripts and without the network, readable on a phone and on paper.

It is well-formed XML, too, so that strict parsers can check it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxcb._src.plotting.series import Curves, panels
from jaxcb._src.plotting.svg import COLORS, MARK_COLORS, chart, text

_LONG = 40  # characters of a cell that gets a wide column
# every rule is below .jaxcb, so that the page can be a part of another one
_STYLE = """
.jaxcb{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;margin:0 auto;max-width:60rem;padding:1rem}
.jaxcb h1{font-size:1.5rem;overflow-wrap:anywhere}
.jaxcb h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid #d5dae1}
.jaxcb .scroll{overflow-x:auto;margin:0 0 1rem}
.jaxcb table{border-collapse:collapse;font-size:.85rem}.jaxcb caption{text-align:left;font-weight:600}
.jaxcb th,.jaxcb td{padding:.2rem .6rem;text-align:left;border-bottom:1px solid #e3e7ec;vertical-align:top}
.jaxcb .facts td{overflow-wrap:anywhere}.jaxcb th{background:#f3f5f8}
.jaxcb td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.jaxcb .charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1rem}
.jaxcb figure{margin:0 0 1rem;min-width:0}.jaxcb svg{display:block}.jaxcb img{max-width:100%;height:auto}
.jaxcb .key{display:inline-block;margin-right:1rem;font-size:.85rem}
.jaxcb .key i{display:inline-block;width:1.2rem;height:.2rem;vertical-align:middle;margin-right:.3rem}
@media (min-width:30rem){.jaxcb td.long{min-width:16rem}}
@media screen and (max-width:30rem){.jaxcb svg text{font-size:15px}.jaxcb .wide svg{min-width:30rem}
.jaxcb .rows,.jaxcb .rows tbody,.jaxcb .rows tr,.jaxcb .rows td,.jaxcb .rows caption{display:block}
.jaxcb .rows thead,.jaxcb .rows td:empty{display:none}.jaxcb .rows tr{border-bottom:1px solid #aab3bf;padding:.3rem 0}
.jaxcb .rows td{border:0;padding:0 0 0 6.5rem;overflow-wrap:anywhere;text-align:left;white-space:normal}
.jaxcb .rows td::before{content:attr(data-label);float:left;margin-left:-6.5rem;width:6rem;color:#59636e}}
@media print{.jaxcb{max-width:none;padding:0;font-size:11px}.jaxcb h2{break-after:avoid}
.jaxcb figure,.jaxcb tr{break-inside:avoid}.jaxcb .scroll{overflow:visible}}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """Returns a complete page."""
    head = '<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{text(title)}</title><style>{_STYLE}</style></head>\n'
        f'<body class="jaxcb">\n<h1>{text(title)}</h1>\n{body}\n</body></html>\n'
    )


def fragment(title: str, parts: Iterable[str]) -> str:
    """Returns the same page as a part of another one, such as a notebook."""
    body = "\n".join(parts)
    return f'<div class="jaxcb"><style>{_STYLE}</style>\n<h1>{text(title)}</h1>\n{body}\n</div>'


def heading(title: str) -> str:
    """Returns a heading of a section."""
    return f"<h2>{text(title)}</h2>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """Returns a table; numbers are aligned to the right, and None is an empty cell."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, columns, row))}</tr>" for row in rows)
    named = f"<caption>{text(caption)}</caption>" if caption else ""
    rows = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="rows">{named}{rows}</table></div>'


def _cell(column: str, value: Any) -> str:
    """Returns a cell. A small screen shows a row as a list, in which each cell is labeled with its column."""
    if value is None:
        return "<td></td>"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = ' class="number"' if is_number else ' class="long"' if len(str(value)) > _LONG else ""
    return f'<td{kind} data-label="{text(column)}">{text(value)}</td>'


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Returns names and values as a table; pairs without a value are left out."""
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>'
        for name, value in pairs
        if value not in (None, "")
    )
    return f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>' if rows else ""


def charts(runs: Sequence[Curves]) -> str:
    """Returns a figure for each metric and that of the validation, and one of the learning rate, with their keys."""
    found = []
    several = len(runs) > 1
    for name, metrics in panels(runs).items():
        keys = [run.name for run in runs] if several else metrics
        found.append(figure(name, chart(runs, metrics, name), keys))
    if any(run.rate is not None for run in runs):
        drawing = chart(runs, ["learning_rate"], "learning rate")
        found.append(figure("learning rate", drawing, [run.name for run in runs] if several else []))
    if not found:
        return "<p>Nothing was reported.</p>"
    kinds = dict.fromkeys(mark.kind for run in runs for mark in run.marks)
    legend = f"<p>{''.join(_key(kind, MARK_COLORS[kind]) for kind in kinds)}</p>" if kinds else ""
    return f'<div class="charts">{"".join(found)}</div>{legend}'


def figure(name: str, drawing: str, keys: Sequence[str] = (), *, wide: bool = False) -> str:
    """Returns a drawing with its name and the names of its curves. A wide one can be scrolled on a small screen."""
    shown = "".join(_key(one, COLORS[i % len(COLORS)]) for i, one in enumerate(keys[:30]))
    drawing = f'<div class="scroll wide">{drawing}</div>' if wide else drawing
    return f"<figure><figcaption><b>{text(name)}</b> {shown}</figcaption>{drawing}</figure>"


def _key(name: str, color: str) -> str:
    return f'<span class="key"><i style="background:{color}"></i>{text(name)}</span>'


def image(data: bytes, described: str) -> str:
    """Returns a PNG or JPEG image as a part of the page."""
    import base64

    kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img alt="{text(described)}" src="{source}"/><figcaption>{text(described)}</figcaption></figure>'
