# SPDX-License-Identifier: Apache-2.0
"""The line figures of a sweep: what they show, and how it is drawn."""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxdp.peers.tables import interval_text
from jaxdp.sweep.analysis import Collection, Setting, SweepReport

from .draw import COLOURS, SOFT, new_figure, styled, svg, tag

_FEW = 50
"""Answers in a bin, below which their share says little."""


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Line:
    """Points joined; or, with one y and no x, a level across the panel with a band."""

    name: str
    colour: str
    points: tuple[Point, ...] = ()
    level: Point | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    ticks: tuple[float, ...] | None = None
    """On a logarithmic axis; None is a linear one."""
    marks: tuple[tuple[float, str], ...] = ()
    """(x, name) where something begins."""

    @styled
    def figure(self, page: str = "") -> Figure:
        """Drawn: for a paper, with title and legend; or as a page's chart of that name, in which
        places are pointed at, and lines shown and hidden."""
        colours = {line.name: line.colour for line in self.lines}
        figure, (axes,) = new_figure(height=2.85 if page else 3.0 + 0.16 * len(colours))
        if self.ticks is not None:
            axes.set_xscale("log")
            axes.set_xticks(self.ticks, [f"{t:g}" for t in self.ticks])
            axes.minorticks_off()
            axes.margins(x=0.25)
        for line in self.lines:
            series = {"series": f"{page}-{list(colours).index(line.name)}"} if page else {}
            _draw(axes, line, series)
        for x, name in self.marks:
            axes.axvline(x, color=SOFT, linestyle=":", linewidth=0.8)
            place = {"xy": (x, 1), "xytext": (-3, -9), "xycoords": ("data", "axes fraction")}
            axes.annotate(name, **place, textcoords="offset points", ha="right", color=SOFT)
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), min(high, 1.0))
        if not page:
            axes.set_title(self.title)
            figure.legend(loc="outside lower center")
        return figure

    def chart(self, name: str) -> dict[str, Any]:
        """For a page's template; `name` is unique on the page."""
        label = f"{self.title}: {self.y_label} by {self.x_label}"
        return {
            "name": name,
            "title": self.title,
            "svg": svg(self.figure(name), name, label),
            "legend": {line.name: line.colour for line in self.lines},
            "hint": "dashed: without privacy" if any(line.level for line in self.lines) else "",
        }


def _draw(axes: Axes, line: Line, series: dict[str, str]) -> None:
    """With `series`, what a page tells the line by, also the places that show notes there."""
    known = axes.get_legend_handles_labels()[1]
    look = {"color": line.colour, "linewidth": 1.2, "gid": tag(**series)}
    if line.level:
        y, name = line.level.y, f"{line.name}, no privacy"
        axes.axhline(y, linestyle="--", label=None if name in known else name, **look)
        axes.axhspan(line.level.low, line.level.high, alpha=0.13, **look | {"linewidth": 0})
        if series:
            axes.axhline(y, linewidth=9, alpha=0, gid=tag(tip=line.level.note, **series))
    if not line.points:
        return
    x, y = [p.x for p in line.points], [p.y for p in line.points]
    wide = line.points[0].low is not None
    if wide:
        axes.vlines(x, [p.low for p in line.points], [p.high for p in line.points], **look)
    label = None if line.name in known else line.name
    axes.plot(x, y, "o-", markersize=5 if wide else 2, label=label, **look)
    for p in line.points if series else ():
        axes.plot([p.x], [p.y], "o", markersize=14, alpha=0, gid=tag(tip=p.note, **series))


def curve(collection: Collection) -> Panel:
    """Weighted F1 over epsilon, a line for each model and recipe, and levels without privacy."""
    series: dict[str, list[Setting]] = {}
    for setting in collection.settings:
        series.setdefault(setting.series, []).append(setting)
    lines, epsilons = [], set()
    for i, (name, settings) in enumerate(series.items()):
        points, level = [], None
        for s in settings:
            mean, low, high = s.scores["weighted_f1"]
            note = f"{name}, {s.level}: {interval_text((mean, low, high))}, seeds: {len(s.members)}"
            if s.epsilon is None:
                level = Point(0.0, mean, low, high, note)
            else:
                # Side by side, so that intervals can be told apart.
                shift = 1 + 0.05 * (i - (len(series) - 1) / 2)
                points.append(Point(s.epsilon * shift, mean, low, high, note))
                epsilons.add(s.epsilon)
        lines.append(Line(name, COLOURS[i % len(COLOURS)], tuple(points), level))
    x, y = "epsilon (smaller is more private)", "test weighted F1"
    return Panel(collection.title, x, y, tuple(lines), ticks=tuple(sorted(epsilons)))


def calibration(collection: Collection) -> Panel:
    """How often labels are there (or the class decided on is) over the probability that was given
    for them; a line for each setting, and the diagonal, where the two agree."""
    even = tuple(Point(x, x, note="as often as was said") for x in (0.0, 1.0))
    lines = [Line("as often as said", COLOURS[-1], even)]
    for i, (name, setting) in enumerate(zip(collection.names, collection.settings, strict=True)):
        counts, sums, positives = setting.reliability.T
        most = np.maximum(counts, 1)
        points = tuple(
            Point(p, share, note=f"{name}: said {p:.2f}, is {share:.2f}, {int(n):,} answers")
            for n, p, share in zip(counts, sums / most, positives / most, strict=True)
            if n >= _FEW
        )
        lines.append(Line(name, COLOURS[i % (len(COLOURS) - 1)], points))
    share = "share decided rightly" if collection.one_class else "share with the label"
    return Panel(collection.title, "probability", share, tuple(lines))


def training(report: SweepReport, collection: Collection) -> Panel:
    """Weighted F1 on validation reports over training steps; a colour for each setting."""
    lines, marks = [], {}
    for i, (name, setting) in enumerate(zip(collection.names, collection.settings, strict=True)):
        for member in setting.members:
            offset, _ = report.members[member].steps
            points = []
            for e in report.histories.get(member, []):
                # What comes before the main stage is stage 0, and that begins after its steps.
                x = e["step"] + (offset if e["stage"] else 0)
                note = f"{member}, step {x}: {e['weighted_f1']:.3f}"
                points.append(Point(x, e["weighted_f1"], note=note))
            if points:
                lines.append(Line(name, COLOURS[i % len(COLOURS)], tuple(points)))
            if offset:
                marks[offset] = "main stage"
    x, y = "step", "validation weighted F1"
    return Panel(collection.title, x, y, tuple(lines), marks=tuple(marks.items()))
