# SPDX-License-Identifier: Apache-2.0
"""The page's figures for a paper: PDF with real text, and PNG."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .analysis import Collection, SweepReport
from .panels import Panel, calibration, curve, setting_names, title, training

# Fonts as outlines of TrueType (42), which publishers accept and readers can search.
_STYLE = {"pdf.fonttype": 42, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def write_figures(report: SweepReport, folder: Path) -> list[Path]:
    """<figure>_<source>_<unit>.pdf and .png for each collection; the paths, PDFs first."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with rc_context(_STYLE):
        for collection in report.collections:
            for name, figure in _figures(report, collection):
                for suffix in (".pdf", ".png"):
                    # Without the time, the same numbers make the same file.
                    options = {"metadata": {"CreationDate": None}} if suffix == ".pdf" else {}
                    path = folder / f"{name}_{collection.source}_{collection.unit}{suffix}"
                    figure.savefig(path, dpi=200, **options)
                    written.append(path)
    return sorted(written, key=lambda path: path.suffix)


def _figures(report: SweepReport, collection: Collection) -> Iterator[tuple[str, Figure]]:
    yield "curve", _lines(curve(collection))
    yield "labels", _heatmap(collection)
    if collection.comparisons:
        yield "differences", _matrix(collection)
    yield "calibration", _lines(calibration(collection))
    panel = training(report, collection)
    if panel.lines:
        yield "training", _lines(panel)


def _lines(panel: Panel) -> Figure:
    names = len({line.name for line in panel.lines})
    figure = Figure((4.8, 3.0 + 0.16 * names), layout="constrained")
    axes = figure.subplots()
    named = set()
    for line in panel.lines:
        label = line.name if line.name not in named else None
        named.add(line.name)
        if line.level:
            y = line.level
            axes.axhline(y.y, color=line.colour, linestyle="--", linewidth=1.2, label=(
                f"{label}, no privacy" if label else None))  # fmt: skip
            axes.axhspan(y.low, y.high, color=line.colour, alpha=0.12, linewidth=0)
        if not line.points:
            continue
        x, y = [p.x for p in line.points], [p.y for p in line.points]
        if line.points[0].low is None:
            axes.plot(x, y, ".-", color=line.colour, linewidth=1.2, markersize=3, label=label)
        else:
            ends = [[p.y - p.low for p in line.points], [p.high - p.y for p in line.points]]
            axes.errorbar(x, y, ends, fmt="o-", color=line.colour, capsize=3, label=label)
    if panel.logarithmic:
        axes.set_xscale("log")
        axes.set_xticks(panel.ticks, [f"{t:g}" for t in panel.ticks])
        axes.minorticks_off()
    for x, name in panel.marks:
        axes.axvline(x, color="0.5", linestyle=":")
        axes.annotate(
            name, (x, 1), (-3, -9), ("data", "axes fraction"), "offset points", ha="right"
        )
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label, ylim=panel.extent())
    axes.grid(axis="y", alpha=0.3)
    figure.legend(fontsize=7, frameon=False, loc="outside lower center")
    return figure


def _grid(size: tuple[float, float], collection: Collection) -> tuple[Figure, Axes]:
    figure = Figure(size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title(collection))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    names = setting_names(collection)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    return figure, axes


def _heatmap(collection: Collection) -> Figure:
    order = np.argsort(-collection.support, kind="stable")
    values = np.stack([s.per_label for s in collection.settings], axis=1)[order]
    figure, axes = _grid((2.4 + 0.7 * values.shape[1], 1.4 + 0.24 * len(values)), collection)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    names = [f"{collection.label_names[i].replace('_', ' ')} ({collection.support[i]:,})"
             for i in order]  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    for (i, j), value in np.ndenumerate(values):
        ink = "white" if value > 0.6 else "black"
        axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7)
    return figure


def _matrix(collection: Collection) -> Figure:
    count = len(collection.settings)
    values = np.full((count, count), np.nan)
    for c in collection.comparisons:
        values[c.row, c.column], values[c.column, c.row] = c.difference, -c.difference
    figure, axes = _grid((2.2 + 0.8 * count, 1.6 + 0.5 * count), collection)
    most = np.nanmax(np.abs(values)) or 1.0
    axes.imshow(values, cmap="PuOr", vmin=-most, vmax=most, aspect="auto", alpha=0.6)
    axes.set_yticks(range(count), setting_names(collection))
    for c in collection.comparisons:
        star = "*" if c.adjusted_p <= 0.05 else ""
        for i, j, sign in ((c.row, c.column, 1), (c.column, c.row, -1)):
            text = f"{sign * c.difference:+.3f}{star}\np {c.adjusted_p:.2g}"
            axes.text(j, i, text, ha="center", va="center", fontsize=7)
    axes.set_xlabel("row minus column, weighted F1; * p (Holm) at most 0.05")
    return figure
