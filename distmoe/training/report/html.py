"""One self-contained HTML page: pictures are embedded, so that the file can be sent to a colleague as it is."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --bg:#fff; --fg:#1f2430; --muted:#6b7280; --line:#e5e7eb; --card:#f8fafc;
  --good:#15803d; --bad:#b91c1c; --accent:#2563eb; }
@media (prefers-color-scheme: dark) { :root { --bg:#161a22; --fg:#e6e8ee; --muted:#949cab; --line:#2b313d;
  --card:#1c212b; --good:#4ade80; --bad:#f87171; --accent:#6ea8fe; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 4rem; background: var(--bg); color: var(--fg);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .5rem; }
p { margin: .3rem 0 .8rem; color: var(--muted); max-width: 75ch; }
img { max-width: 100%; height: auto; display: block; margin: .4rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; margin: .4rem 0 1rem; }
.scroll { overflow-x: auto; }
th, td { padding: .34rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
th { font-size: .8rem; font-weight: 600; color: var(--muted); }
tr.total td { font-weight: 650; border-top: 2px solid var(--line); }
.good { color: var(--good); } .bad { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .7rem; margin: 1.3rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .65rem .85rem; }
.tile b { display: block; font-size: 1.25rem; font-weight: 650; }
.tile span { font-size: .8rem; color: var(--muted); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem;
  overflow-x: auto; font-size: 12.5px; }
summary { cursor: pointer; color: var(--accent); }
"""


@dataclass(frozen=True)
class Cell:
    """A table cell; ``tone`` is ``good``, ``bad`` or empty, ``text`` cells are left-aligned."""

    value: str
    tone: str = ""
    text: bool = False


def page(title: str, subtitle: str, body: Iterable[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def section(title: str, note: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(note)}</p>{''.join(parts)}</section>"


def tiles(rows: Iterable[tuple[str, str]]) -> str:
    """Headline numbers: (label, value)."""
    inner = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for label, value in rows
    )
    return f'<div class="tiles">{inner}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[Cell]], *, total: bool = False, text_columns: int = 1) -> str:
    """A table; ``total`` sets the last row apart."""
    listed = list(rows)
    head = "".join(
        f"<th{' class=text' if i < text_columns else ''}>{escape(name)}</th>" for i, name in enumerate(header)
    )
    body = []
    for index, row in enumerate(listed):
        mark = ' class="total"' if total and index == len(listed) - 1 else ""
        body.append(f"<tr{mark}>{''.join(_cell(cell) for cell in row)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def picture(paths: tuple[Path, Path], description: str) -> str:
    """A picture in its light and dark variant."""
    light, dark = (f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" for path in paths)
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(description)}"></picture>'
    )


def folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _cell(cell: Cell) -> str:
    classes = " ".join(name for name in (cell.tone, "text" if cell.text else "") if name)
    return f'<td class="{classes}">{escape(cell.value)}</td>' if classes else f"<td>{escape(cell.value)}</td>"
