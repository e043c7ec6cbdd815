# SPDX-License-Identifier: Apache-2.0
"""Pages and figures.

A page is one file, with nothing from outside, for light and dark, phone and paper. Its text is in
templates/; whatever is put in is escaped, unless it is `Markup`.

Figures are matplotlib's, as SVG inside a page and as files for a paper, both drawn in the page's
colours for light paper. Inside a page they become its CSS variables, which have others in the dark,
and the text takes the page's font and is text.
"""

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import jinja2
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's: told apart by colour-blind readers, and visible on light and on dark."""
INK, SOFT, LINE, WARN = "#1a1d21", "#5c6670", "#d9dee3", "#8a4b00"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line"}
_STYLE = {
    # Fonts as outlines of TrueType (42), which publishers accept and readers can search.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "font.size": 7.5,
    "axes.titlesize": 9,
    "axes.labelsize": 7.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.edgecolor": SOFT,
    "grid.color": LINE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.left": False,
    "legend.fontsize": 7,
    "legend.frameon": False,
}
styled = rc_context(_STYLE)
"""Decorator of all that makes or saves a figure."""


def render(template: str, **values: Any) -> str:
    """A file of templates/, filled in; the same values make the same page."""
    return TEMPLATES.get_template(template).render(values)


def new_figure(width: float = 4.8, height: float = 2.85, columns: int = 1) -> tuple[Figure, list]:
    """A figure of this many inches, and its axes, side by side."""
    figure = Figure((width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def tag(**data: str) -> str:
    """An artist's gid that `svg` turns into attributes: data-NAME="value"."""
    return urlencode({f"data-{name}": value for name, value in data.items()})


@styled
def svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as part of a page, on which `name` is unique; `label` is for those who cannot see.

    Draws into the page's colours, and keeps nothing that would load or name anything outside.
    """
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer := io.StringIO(), format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', buffer.getvalue()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        key = attributes.pop("id", "")
        if key in used:
            attributes["id"] = key
        attributes |= {k: v for k, v in parse_qsl(key) if k.startswith("data-")}
        if "style" in attributes:
            attributes["style"] = _themed(attributes["style"])
        element.attrib = attributes
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": "chart", "role": "img"}
    root.attrib["aria-label"] = label
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _themed(css: str) -> str:
    for colour, variable in _VARIABLES.items():
        css = css.replace(colour, f"var({variable})")
    return re.sub(r"font-family: [^;]*;? ?", "", css)


@styled
def save(figure: Figure, path: Path) -> list[Path]:
    """Writes path.pdf and path.png; the same numbers make the same files."""
    written = [path.with_name(path.name + suffix) for suffix in (".pdf", ".png")]
    figure.savefig(written[0], metadata={"CreationDate": None})
    figure.savefig(written[1], dpi=200)
    return written
