"""One HTML page without scripts and without the network, readable on a phone and on paper.

It is well-formed XML, too, so that strict parsers can check it.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxcb._src.plotting.series import Curves, panels
from jaxcb._src.plotting.svg import COLORS, MARK_COLORS, chart, text

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;margin:0 auto;max-width:60rem;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid #d5dae1}h3{font-size:1rem}
svg{display:block}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}caption{text-align:left;font-weight:600}
th,td{padding:.2rem .6rem;text-align:left;border-bottom:1px solid #e3e7ec;vertical-align:top}td{overflow-wrap:anywhere}
th{background:#f3f5f8}td.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
img{max-width:100%;height:auto}figure{margin:0 0 1rem}
@media print{body{max-width:none;padding:0;font-size:11px}h2{break-after:avoid}figure,tr{break-inside:avoid}}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """Returns a complete page."""
    head = '<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{text(title)}</title><style>{_STYLE}</style></head>\n'
        f"<body>\n<h1>{text(title)}</h1>\n{body}\n</body></html>\n"
    )


def heading(title: str) -> str:
    """Returns a heading of a section."""
    return f"<h2>{text(title)}</h2>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """Returns a table; numbers are aligned to the right, and None is an empty cell."""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    named = f"<caption>{text(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{named}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f'<td class="number">{text(value)}</td>' if is_number else f"<td>{text(value)}</td>"


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Returns names and values as a table; pairs without a value are left out."""
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>'
        for name, value in pairs
        if value not in (None, "")
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>' if rows else ""


def charts(runs: Sequence[Curves]) -> list[str]:
    """Returns a figure for each metric and that of the validation, and one of the learning rate, with their keys."""
    found = []
    several = len(runs) > 1
    for name, metrics in panels(runs).items():
        found.append(_figure(name, chart(runs, metrics, name), runs if several else [], [] if several else metrics))
    if any(run.rate is not None for run in runs):
        drawing = chart(runs, ["learning_rate"], "learning rate")
        found.append(_figure("learning rate", drawing, runs if several else [], []))
    if runs and any(run.marks for run in runs):
        kinds = dict.fromkeys(mark.kind for run in runs for mark in run.marks)
        found.append(f"<p>{''.join(_key(kind, MARK_COLORS[kind]) for kind in kinds)}</p>")
    return found


def _figure(name: str, drawing: str, runs: Sequence[Curves], metrics: Sequence[str]) -> str:
    names = [run.name for run in runs] or list(metrics)
    keys = "".join(_key(one, COLORS[i % len(COLORS)]) for i, one in enumerate(names[:30]))
    return f"<figure><figcaption><b>{text(name)}</b> {keys}</figcaption>{drawing}</figure>"


def _key(name: str, color: str) -> str:
    """Returns a coloured line and a name, with their style in them: a notebook has no style sheet of ours."""
    line = f"display:inline-block;width:1.2em;height:.2em;vertical-align:middle;margin-right:.3em;background:{color}"
    return f'<span style="display:inline-block;margin-right:1em"><i style="{line}"></i>{text(name)}</span>'


def image(data: bytes, described: str) -> str:
    """Returns a PNG or JPEG image as a part of the page."""
    import base64

    kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img alt="{text(described)}" src="{source}"/><figcaption>{text(described)}</figcaption></figure>'
