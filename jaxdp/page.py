# SPDX-License-Identifier: Apache-2.0
"""The skeleton of every HTML page: one file, nothing from outside, light and dark, phone and paper.

Everything that is put in through these functions is escaped; only `Html` passes as it is.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


class Html(str):
    """Markup that is finished: its own text has been escaped."""


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1d21; --soft: #5c6670;
  --line: #d9dee3; --panel: #f5f7f9; --mark: #0072b2; --warn: #8a4b00; --warn-paper: #fff4e0; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e8eaed; --soft: #a0a9b2;
  --line: #343a41; --panel: #1d2126; --mark: #56b4e9; --warn: #ffc46b; --warn-paper: #33270f; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; margin: 0;
  background: var(--paper); color: var(--ink); overflow-wrap: break-word; }
main { max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .3rem; }
p { margin: .5rem 0; max-width: 46rem; } .soft { color: var(--soft); } small { font-size: .85em; }
code { font: .88em ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; }
svg { max-width: 100%; height: auto; }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --panel: #fff; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } .scroll { overflow: visible; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""

# Neither this page nor anything in it may load or send anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def document(title: str, parts: Iterable[Html], *, style: str = "", script: str = "") -> str:
    """A whole page; `style` and `script` are added inline."""
    body = "\n".join(parts)
    code = f"<script>{script}</script>" if script else ""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>\n"
        f"<body><main>\n{body}\n</main>{code}</body></html>\n"
    )


def element(tag: str, content: Any = "", **attributes: Any) -> Html:
    """<tag ...>content</tag>, escaped; `class_` is the attribute class, `_` in names is "-"."""
    return Html(f"<{tag}{_attributes(attributes)}>{text(content)}</{tag}>")


def text(content: Any) -> Html:
    """Anything as escaped text; lists are joined; None is nothing."""
    if content is None:
        return Html("")
    if isinstance(content, Html):
        return content
    if isinstance(content, list | tuple):
        return Html("".join(text(part) for part in content))
    return Html(escape(str(content)))


def table(
    header: Sequence[Any], rows: Iterable[Sequence[Any]], *, numbers: bool = True, **attributes: Any
) -> Html:
    """A table that scrolls where it is too wide. With `numbers`, all columns but the first are
    aligned to the right. A cell that is an element td or th stays as it is."""
    kind = {"class_": "number"} if numbers else {}

    def cells(tag: str, row: Sequence[Any]) -> list[Html]:
        return [
            cell
            if isinstance(cell, Html) and cell.startswith(("<td", "<th"))
            else element(tag, cell, **(kind if i else {}))
            for i, cell in enumerate(row)
        ]

    head = element("thead", element("tr", cells("th", header)))
    body = element("tbody", [element("tr", cells("td", row)) for row in rows])
    return element("div", element("table", [head, body], **attributes), class_="scroll")


def _attributes(attributes: dict[str, Any]) -> str:
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
