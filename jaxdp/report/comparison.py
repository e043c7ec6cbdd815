# SPDX-License-Identifier: Apache-2.0
"""The comparison with PyTorch as one self-contained page: whatever has been compared so far."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxdp.peers.job import SIDES
from jaxdp.peers.tables import RUN_HEADER, cell_text, result_table, run_row, settings_rows

from .draw import COLOURS, INK, WARN, new_figure, render, styled, svg

SIDE_COLOURS = dict(zip(SIDES, COLOURS, strict=False))


def write_page(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the page; `results` is what was compared -> what its JSON file holds."""
    parts = []
    for level, result in results.items():
        settings = {
            name: [
                [{"text": cell, "class": differs} for cell in cells]
                for *cells, differs in settings_rows(both)
            ]
            for name, both in result["settings"].items()
        }
        figures, runs = {}, []
        if level == "trajectory":
            figures = {"differences by step": _step_figure(result)}
        elif level == "runs":
            summary, runs = result["summary"], [run_row(r) for r in result["runs"]]
            figures = {
                "weighted F1 by epsilon": _f1_figure(summary, result["runs"]),
                "time and memory": _cost_figure(summary),
            }
        pictures = [svg(f, f"{level}{i}", label) for i, (label, f) in enumerate(figures.items())]
        header, rows = result_table(level, result)
        parts.append(
            {"level": level, "result": result, "settings": settings, "figures": pictures}
            | {"header": header, "rows": rows, "runs": runs}
        )
    path.write_text(
        render("comparison.html", parts=parts, sides=SIDES, run_header=RUN_HEADER), encoding="utf-8"
    )


@styled
def _step_figure(result: Mapping[str, Any]) -> Figure:
    figure, (axes,) = new_figure()
    axes.semilogy(range(1, result["steps"] + 1), result["error_by_step"], "o-", color=INK)
    axes.axhline(result["tolerance"], color=WARN, linestyle="--", label="tolerance")
    axes.set(xlabel="step", ylabel="difference / distance moved")
    axes.legend()
    return figure


@styled
def _f1_figure(summary: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Weighted F1 by epsilon; recipes are told apart by marker, sides by colour."""
    epsilons = sorted({r["epsilon"] for r in summary}, key=lambda e: (e is None, e or 0))
    series = [(r, side) for r in dict.fromkeys(r["recipe"] for r in summary) for side in SIDES]
    figure, (axes,) = new_figure(height=3.2)
    for i, (recipe, side) in enumerate(series):
        rows = [row for row in summary if row["recipe"] == recipe]
        at = {row["epsilon"]: epsilons.index(row["epsilon"]) for row in rows}
        at = {e: x + (i - (len(series) - 1) / 2) * 0.6 / len(series) for e, x in at.items()}
        # An end that is None, of one seed, becomes not a number, and its bar nothing.
        mean, low, high = np.array([row[side]["weighted_f1"] for row in rows], float).T
        ends = np.nan_to_num([mean - low, high - mean])
        style = {"color": SIDE_COLOURS[side], "marker": "osD^v"[i // 2 % 5], "linestyle": ""}
        axes.errorbar(at.values(), mean, ends, capsize=4, label=f"{side}, {recipe}", **style)
        dots = [r for r in runs if (r["recipe"], r["side"]) == (recipe, side)]
        axes.scatter(
            [at[r["target_epsilon"]] for r in dots],
            [r["weighted_f1"] for r in dots],
            s=8,
            color=INK,
            zorder=3,
        )
    axes.set(xlabel="epsilon", ylabel="weighted F1", xlim=(-0.6, len(epsilons) - 0.4))
    axes.set_xticks(range(len(epsilons)), [cell_text(e) for e in epsilons])
    scores = [r["weighted_f1"] for r in runs]
    axes.set_ylim(max(0, min(scores) - 0.15), min(1, max(scores) + 0.15))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@styled
def _cost_figure(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """Seconds, throughput and memory of each recipe and epsilon."""
    figure, panels = new_figure(6.2, 1.1 + 0.3 * len(summary), columns=3)
    labels = [f"{r['recipe']}, epsilon {cell_text(r['epsilon'])}" for r in summary]
    shown = {
        "seconds, start to adapter": lambda side: side["seconds"],
        "reports/s": lambda side: side["reports_per_second"],
        "peak memory, GB": lambda side: side["peak_memory"] / 1e9,
    }
    for axes, (title, value) in zip(panels, shown.items(), strict=True):
        for j, side in enumerate(SIDES):
            at = [i + (j - 0.5) * 0.36 for i in range(len(summary))]
            widths = [value(r[side]) for r in summary]
            bars = axes.barh(at, widths, 0.34, color=SIDE_COLOURS[side], label=side)
            axes.bar_label(bars, [f" {w:,.2f}" if w < 10 else f" {w:,.0f}" for w in widths])
        axes.set_title(title)
        axes.set_yticks(range(len(labels)), labels if axes is panels[0] else [])
        axes.invert_yaxis()
        axes.grid(False)
        axes.margins(x=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
