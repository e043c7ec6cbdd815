# SPDX-License-Identifier: Apache-2.0
"""Panels as inline SVG: themed by the page's colours, readable on a phone, with notes to tap."""

import math

import numpy as np

from jaxdp.page import Html, element

from .panels import Line, Panel, Point

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 74, 14, 12, 56


class _Scale:
    """Data to pixels."""

    def __init__(self, panel: Panel):
        low, high = panel.reach()
        self.log = panel.logarithmic
        a, b = (math.log10(low), math.log10(high)) if self.log else (low, high)
        room = max(0.06 * (b - a), 0.35 if self.log else 0.5)
        self.x0, self.x1 = a - room, b + room
        if not self.log:
            self.x0 = min(low, 0)
        self.y0, self.y1 = panel.extent()

    def x(self, value: float) -> float:
        value = math.log10(value) if self.log else value
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.y1 - value) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)


def line_chart(panel: Panel, name: str) -> Html:
    """A figure with legend; `name` is unique on the page. Lines of one name are one legend entry,
    which shows and hides them."""
    scale = _Scale(panel)
    names = list(dict.fromkeys(line.name for line in panel.lines))
    drawn = [_axes(panel, scale)]
    for line in panel.lines:
        series = f"{name}-{names.index(line.name)}"
        drawn.append(
            element("g", _line(line, scale), class_="series", data_series=series, color=line.colour)
        )
    picture = element(
        "svg",
        drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{panel.title}: {panel.y_label} by {panel.x_label}",
        class_="chart",
    )
    colour = {line.name: line.colour for line in panel.lines}
    entries = [
        element(
            "button",
            [element("i", style=f"background:{colour[n]}"), n],
            type="button",
            data_toggle=f"{name}-{i}",
            aria_pressed="true",
        )
        for i, n in enumerate(names)
    ]
    levels = any(line.level for line in panel.lines)
    hint = element("span", "dashed: without privacy", class_="soft") if levels else None
    legend = element("div", [*entries, hint], class_="legend")
    return element("figure", [element("h3", panel.title), picture, legend])


def _axes(panel: Panel, scale: _Scale) -> list[Html]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in _ticks(scale.y0, scale.y1):
        y = scale.y(value)
        parts.append(
            element("line", x1=LEFT, x2=right, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
        )
        parts.append(_text(f"{value:.2g}", LEFT - 8, y + 5, "end"))
    ticks = panel.ticks if panel.ticks is not None else _ticks(scale.x0, scale.x1)
    for value in ticks:
        parts.append(_text(f"{value:g}", scale.x(value), bottom + 20, "middle"))
    for value, name in panel.marks:
        x = scale.x(value)
        parts.append(
            element("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP, y2=bottom, class_="mark")
        )
        parts.append(_text(name, x - 5, TOP + 14, "end", class_="soft"))
    parts.append(element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(_text(panel.x_label, (LEFT + right) / 2, HEIGHT - 8, "middle", class_="soft"))
    middle = (TOP + bottom) / 2
    turned = f"rotate(-90 18 {middle:g})"
    parts.append(_text(panel.y_label, 18, middle, "middle", class_="soft", transform=turned))
    return parts


def _text(content: str, x: float, y: float, anchor: str, **attributes) -> Html:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text_anchor": anchor}
    return element("text", content, **place, **attributes)


def _line(line: Line, scale: _Scale) -> list[Html]:
    parts = []
    if line.level:
        parts += _level(line.level, scale)
    if len(line.points) > 1:
        path = " ".join(f"{scale.x(p.x):.1f},{scale.y(p.y):.1f}" for p in line.points)
        parts.append(element("polyline", points=path, class_="path"))
    for p in line.points:
        x, y = f"{scale.x(p.x):.1f}", f"{scale.y(p.y):.1f}"
        if p.low is not None:
            ends = {"y1": f"{scale.y(p.low):.1f}", "y2": f"{scale.y(p.high):.1f}"}
            parts.append(element("line", x1=x, x2=x, **ends, class_="whisker"))
        radius = 5 if p.low is not None else 2.5
        parts.append(element("circle", cx=x, cy=y, r=radius, class_="dot"))
        parts.append(element("circle", cx=x, cy=y, r=13, class_="touch", data_tip=p.note))
    return parts


def _level(level: Point, scale: _Scale) -> list[Html]:
    y, right = f"{scale.y(level.y):.1f}", WIDTH - RIGHT
    top, bottom = scale.y(level.high), scale.y(level.low)
    box = {"x": LEFT, "width": right - LEFT, "y": f"{top:.1f}", "height": f"{bottom - top:.1f}"}
    return [
        element("rect", **box, class_="band"),
        element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="level"),
        element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="touch-line", data_tip=level.note),
    ]


def _ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers in a range."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= about)
    first = math.ceil(low / step - 1e-9) * step
    return [round(float(v), 10) for v in np.arange(first, high + 1e-9 * step, step)]
