# SPDX-License-Identifier: Apache-2.0
"""The comparison as one self-contained HTML page: whatever levels have been run so far."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from jaxdp import page
from jaxdp.page import Html, element

from .job import SIDES

DIFFERENCES = ("over_seeds", "over_reports")
COLOURS = dict(zip(SIDES, ("#1f6fb4", "#d8731c"), strict=True))
# Figures are black on white in both themes.
_STYLE = """
figure.paper { background: #fff; margin: 1rem 0; padding: .5rem; max-width: max-content; }
td.differs { background: var(--warn-paper); }
"""


def write_page(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the page; `results` is level -> what its JSON file holds."""
    parts = [element("h1", "jaxdp and PyTorch on the same work")]
    for level, result in results.items():
        parts += [element("h2", level), element("p", element("code", result["command"]))]
        parts += {"gradients": _gradients, "trajectory": _trajectory, "runs": _runs}[level](result)
        for name, settings in result["settings"].items():
            parts += [element("h3", f"Settings of both sides: {name}"), settings_table(settings)]
    path.write_text(page.document("jaxdp and PyTorch", parts, style=_STYLE), encoding="utf-8")


def settings_rows(
    settings: Mapping[str, Mapping[str, Any]],
) -> Iterable[tuple[str, str, str, str]]:
    """(name, ours, theirs, "differs" or "") of every setting, read from both sides' objects."""
    ours, theirs = (settings[side] for side in SIDES)
    for name in ours:
        # JSON makes lists of tuples
        a, b = _text(ours[name]), _text(theirs[name])
        yield name, a, b, "" if a == b else "differs"


def settings_table(settings: Mapping[str, Mapping[str, Any]]) -> Html:
    rows = [
        [element("td", cell, class_=differs or None) for cell in (name, a, b)]
        for name, a, b, differs in settings_rows(settings)
    ]
    return page.table(["", *SIDES], rows, numbers=False)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Html:
    return page.table(header, [[_text(cell) for cell in row] for row in rows], numbers=False)


def result_table(level: str, result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a level's numbers, for the screen and the page."""
    if level == "runs":
        return summary_table(result["summary"])
    errors = result["errors"]
    if level == "trajectory":
        header, columns = ["difference / distance moved"], [errors]
    else:
        header = list(errors)
        columns = [found | found["sums"] for found in errors.values()]
    prefix = "base_model.model."
    rows = [
        [n.removeprefix(prefix), *(f"{c[n]:.1e}" for c in columns)]
        for n in columns[0]
        if n != "sums"
    ]
    return ["", *header], rows


def _gradients(result: Mapping[str, Any]) -> list[Html]:
    refused = [element("p", f"{k} refused: {v}") for k, v in result["refused"].items()]
    return [
        element(
            "p",
            f"{result['reports']} reports, {result['clipped']:.0%} clipped to "
            f"{result['l2_clip_norm']:g}; differences from jaxdp: of a sum's entries relative to "
            f"the largest, of norms to the norm or the clip norm; allowed {result['tolerance']:g}: "
            f"{'passed' if result['passed'] else 'FAILED'}",
        ),
        *refused,
        _table(*result_table("gradients", result)),
    ]


def _trajectory(result: Mapping[str, Any]) -> list[Html]:
    figure = Figure((6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(range(1, result["steps"] + 1), result["error_by_step"], "o-", color="#444")
    axes.axhline(result["tolerance"], color="#b00", linestyle="--", label="tolerance")
    axes.set(xlabel="step", ylabel="difference / distance moved")
    axes.legend()
    return [
        element(
            "p",
            f"{result['steps']} steps on the same reports without noise; the adapters moved by "
            f"{result['moved']:.2g} of their norm: {'passed' if result['passed'] else 'FAILED'}",
        ),
        _svg(figure),
        _table(*result_table("trajectory", result)),
    ]


def _runs(result: Mapping[str, Any]) -> list[Html]:
    summary = result["summary"]
    return [
        element("p", "Bars and intervals: mean over seeds, 95 % Student interval; dots are runs."),
        _svg(_f1_figure(summary, result["runs"])),
        _svg(_cost_figure(summary)),
        _table(*summary_table(summary)),
        _table(
            ["recipe", "epsilon", "seed", "side", "weighted F1", "micro", "macro", "reports/s",
             "setup s", "first step s", "other steps s", "peak GB", "stated epsilon"],
            [
                (r["recipe"], r["target_epsilon"], r["seed"], r["side"], r["weighted_f1"],
                 r["micro_f1"], r["macro_f1"], r["reports_per_second"], r["setup_seconds"],
                 r["first_step_seconds"], r["later_seconds"], r["peak_memory"] / 1e9,
                 _stated(r["epsilon"]))
                for r in result["runs"]
            ],
        ),
    ]  # fmt: skip


def summary_table(summary: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of `runs.summarise`."""
    header = [
        "recipe",
        "epsilon",
        "",
        "weighted F1",
        "reports/s",
        "seconds",
        "peak GB",
        "stated epsilon",
    ]
    rows = []
    for row in summary:
        name = [row["recipe"], _text(row["epsilon"])]
        for side in SIDES:
            found = row[side]
            rows.append(
                [*name, side, _interval(found["weighted_f1"])]
                + [f"{found['reports_per_second']:.1f}", f"{found['seconds']:.0f}"]
                + [f"{found['peak_memory'] / 1e9:.2f}", _stated(found["epsilon"])]
            )
        ratio = [row[SIDES[0]][n] / row[SIDES[1]][n] for n in ("reports_per_second", "seconds")]
        ratio = [f"x {value:.2f}" for value in ratio]
        seeds, reports = (_interval(row["difference"][of], "+") for of in DIFFERENCES)
        rows.append([*name, "gap, other seeds", seeds, *ratio, "", ""])
        rows.append([*name, "gap, other reports", reports, "", "", "", ""])
    return header, rows


def _stated(epsilon: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in epsilon.items())


def _f1_figure(summary: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Weighted F1 by epsilon; recipes are told apart by marker, sides by colour."""
    epsilons = sorted({r["epsilon"] for r in summary}, key=lambda e: (e is None, e or 0))
    series = [(r, side) for r in dict.fromkeys(r["recipe"] for r in summary) for side in SIDES]
    figure = Figure((7, 4), layout="constrained")
    axes = figure.subplots()
    for i, (recipe, side) in enumerate(series):
        rows = [row for row in summary if row["recipe"] == recipe]
        at = {row["epsilon"]: epsilons.index(row["epsilon"]) for row in rows}
        at = {e: x + (i - (len(series) - 1) / 2) * 0.6 / len(series) for e, x in at.items()}
        mean, low, high = zip(*(row[side]["weighted_f1"] for row in rows), strict=True)
        ends = [
            [m - (m if end is None else end) for m, end in zip(mean, low, strict=True)],
            [(m if end is None else end) - m for m, end in zip(mean, high, strict=True)],
        ]
        style = {"color": COLOURS[side], "marker": "osD^v"[i // 2 % 5], "linestyle": ""}
        axes.errorbar(at.values(), mean, ends, capsize=4, label=f"{side}, {recipe}", **style)
        dots = [r for r in runs if (r["recipe"], r["side"]) == (recipe, side)]
        axes.scatter(
            [at[r["target_epsilon"]] for r in dots],
            [r["weighted_f1"] for r in dots],
            s=8,
            color="black",
            zorder=3,
        )
    axes.set(xlabel="epsilon", ylabel="weighted F1", xlim=(-0.6, len(epsilons) - 0.4))
    axes.set_xticks(range(len(epsilons)), [_text(e) for e in epsilons])
    scores = [r["weighted_f1"] for r in runs]
    axes.set_ylim(max(0, min(scores) - 0.15), min(1, max(scores) + 0.15))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    return figure


def _cost_figure(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """Seconds, throughput and memory of each recipe and epsilon."""
    figure = Figure((9, 3.6), layout="constrained")
    labels = [f"{r['recipe']}\nepsilon {_text(r['epsilon'])}" for r in summary]
    panels = {
        "seconds, start to adapter": lambda side: side["seconds"],
        "reports/s": lambda side: side["reports_per_second"],
        "peak memory, GB": lambda side: side["peak_memory"] / 1e9,
    }
    for axes, (title, value) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for j, side in enumerate(SIDES):
            at = [i + (j - 0.5) * 0.36 for i in range(len(summary))]
            heights = [value(r[side]) for r in summary]
            bars = axes.bar(at, heights, 0.34, color=COLOURS[side], label=side)
            axes.bar_label(
                bars, [f"{h:,.2f}" if h < 10 else f"{h:,.0f}" for h in heights], fontsize=7
            )
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(labels)), labels, fontsize=7)
        axes.margins(y=0.15)
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _svg(figure: Figure) -> Html:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    picture = Html(buffer.getvalue()[buffer.getvalue().index("<svg") :])
    return element("figure", picture, class_="paper")


def _interval(interval: Sequence[float | None], sign: str = "") -> str:
    mean, low, high = interval
    if low is None:
        return f"{mean:{sign}.3f}"
    return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
