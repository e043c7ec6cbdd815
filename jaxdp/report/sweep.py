# SPDX-License-Identifier: Apache-2.0
"""A sweep as one self-contained page, and as figures for a paper."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxdp.dp.statement import rounded_up
from jaxdp.peers.tables import cell_text, interval_text
from jaxdp.sweep.analysis import Collection, SweepReport, last_name

from .draw import INK, new_figure, render, save, styled
from .lines import calibration, curve, training

_SURE = "#b3d5e8"
"""What `sure` of the page's style is on white paper."""
_HIDDEN = {"run.dir", "run.name", "data.root", "data.cache", "teacher.path", "run.research_seed"}


def sweep_page(report: SweepReport) -> str:
    """The HTML; deterministic for the same folder."""
    members, described = report.members, report.description["members"]
    settings = {name: member.settings for name, member in members.items()}
    first = next(iter(settings.values()))
    fields = [f for f in first if f not in _HIDDEN]
    differ = [f for f in fields if len({str(s[f]) for s in settings.values()}) > 1]
    return render(
        "sweep.html",
        report=report,
        cards=_cards(report),
        collections=[_collection(report, c, i) for i, c in enumerate(report.collections)],
        joints=[joint | _told(joint) for joint in report.description["joint"]],
        outside=sum(m["epsilon"] is None for m in described.values()),
        seeded=any(s["run.research_seed"] is not None for s in settings.values()),
        costs=_costs(report),
        differ=differ,
        settings=[
            [name, described[name]["group"] + 1, _epsilon(described[name]["epsilon"])]
            + [_value(s[f]) for f in differ]
            for name, s in settings.items()
        ],
        same=[[f, _value(first[f])] for f in fields if f not in differ],
    )


def _cards(report: SweepReport) -> list[tuple[str, str]]:
    cards = [(f"{len(report.finished)} of {len(report.members)}", "members finished")]
    for collection in report.collections:
        best = max(
            (s for s in collection.settings if s.epsilon is not None),
            key=lambda s: s.scores["weighted_f1"][0],
            default=None,
        )
        if best:
            score = f"{best.scores['weighted_f1'][0]:.3f}"
            cards.append((score, f"best private weighted F1, {collection.title}, {best.level}"))
    for joint in report.description["joint"]:
        of = f"of publishing the best, or all, of {len(joint['members'])} private members"
        cards.append((_epsilon(joint["epsilon"], "too large to claim"), f"epsilon {of}"))
    return cards


def _told(joint: dict[str, Any]) -> dict[str, Any]:
    """What the page says of a joint cost in other words."""
    epsilon = joint["epsilon"]
    claimed = epsilon is not None
    return {
        "epsilon": rounded_up(epsilon) if claimed else None,
        "odds": rounded_up(math.exp(epsilon)) if claimed and epsilon < 700 else "more than 10^300",
        "mechanisms": [
            [name, f"{m['expected_batch_size'] / m['units']:.4g}"]
            + [f"{m['noise_multiplier']:.4g}", m["steps"]]
            for name, m in joint["mechanisms"].items()
        ],
    }


def _collection(report: SweepReport, collection: Collection, number: int) -> dict[str, Any]:
    steps = training(report, collection)
    return {
        "of": collection,
        "curve": curve(collection).chart(f"curve{number}"),
        "calibration": calibration(collection).chart(f"calibration{number}"),
        "training": steps.chart(f"training{number}") if steps.lines else None,
        "averages": list(_averages(collection).values()),
        "scores": _scores(collection),
        "labels": _labels(collection),
        "differences": _differences(collection),
    }


def _averages(collection: Collection) -> dict[str, str]:
    """Those shown beside weighted F1: score -> what people call it."""
    if collection.one_class:  # where micro F1 is accuracy
        names = ("macro F1", "accuracy", "balanced accuracy")
        return dict(zip(("macro_f1", "micro_f1", "balanced_accuracy"), names, strict=True))
    return {"micro_f1": "micro F1", "macro_f1": "macro F1"}


def _scores(collection: Collection) -> list[list[Any]]:
    rows = []
    for s in collection.settings:
        seeds = s.seeds["weighted_f1"]
        over = f"{seeds[1]:.3f} to {seeds[2]:.3f}" if math.isfinite(seeds[1]) else "-"
        rows.append(
            [s.series, "none" if s.epsilon is None else f"{s.epsilon:g}", len(s.members)]
            + [interval_text(s.scores["weighted_f1"]), over]
            + [f"{s.scores[average][0]:.3f}" for average in _averages(collection)]
        )
    return rows


def _labels(collection: Collection) -> list[list[dict[str, Any]]]:
    rows = []
    for i in np.argsort(-collection.support, kind="stable"):  # the most frequent first
        name = f"{collection.label_names[i].replace('_', ' ')} ({collection.support[i]:,})"
        cells = [{"head": True, "text": name}]
        for s in collection.settings:
            value = float(s.per_label[i])
            tip = f"{name}, {s.series}, {s.level}: F1 {value:.3f}"
            paper, ink = colours = _shade(value)
            cells.append(
                {"text": f"{value:.2f}", "tip": tip, "colours": colours}
                | {"style": f"background:{paper};color:{ink}"}
            )
        rows.append(cells)
    return rows


def _shade(value: float) -> tuple[str, str]:
    """Light to dark blue, and ink that can be read on it; the same in both themes."""
    low, high = (236, 243, 249), (8, 58, 112)
    colour = (round(a + (b - a) * value) for a, b in zip(low, high, strict=True))
    return "#{:02x}{:02x}{:02x}".format(*colour), "#ffffff" if value > 0.5 else "#111111"


def _differences(collection: Collection) -> list[list[dict[str, Any]]]:
    names, cells = collection.names, {}
    for c in collection.comparisons:
        effect = "" if c.effect is None else f", Hedges' g over seeds {c.effect:+.1f}"
        sure = c.adjusted_p <= 0.05
        for row, column, sign in ((c.row, c.column, 1), (c.column, c.row, -1)):
            difference = f"{sign * c.difference:+.3f}"
            cells[row, column] = {
                "text": difference,
                "small": f"p = {c.adjusted_p:.3f}" if c.adjusted_p >= 0.001 else "p < 0.001",
                "class": "sure" if sure else "",
                "colours": (_SURE if sure else "white", INK),
                "tip": f"{names[row]} minus {names[column]}: {difference}, "
                f"p {c.p:.2g}, after Holm {c.adjusted_p:.2g}{effect}",
            }
    blank = {"text": "", "small": "", "class": "none"}
    return [
        [{"head": True, "text": name}, *(cells.get((i, j), blank) for j in range(len(names)))]
        for i, name in enumerate(names)
    ]


def _costs(report: SweepReport) -> list[list[Any]]:
    rows = []
    for collection in report.collections:
        for s in collection.settings:
            steps = sum(report.members[s.members[0]].steps)
            seconds = "-" if s.seconds is None else f"{s.seconds:,.0f}"
            memory = "-" if s.peak_memory is None else f"{s.peak_memory / 1e9:.2f}"
            name = f"{collection.title}: {s.series}, {s.level}"
            rows.append([name, len(s.members), steps, seconds, memory])
    return rows


def _value(value: Any) -> str:
    """A setting for people; of a path only its last name."""
    return last_name(cell_text(value))


def _epsilon(value: float | None, none: str = "none") -> str:
    return none if value is None else rounded_up(value)


def write_figures(report: SweepReport, folder: Path) -> list[Path]:
    """<figure>_<source>_<unit>.pdf and .png for each collection, with _2 behind it for a second one
    of that source and unit, and so on; the paths, PDFs first."""
    folder.mkdir(parents=True, exist_ok=True)
    written, seen = [], Counter()
    for c in report.collections:
        about = f"{c.source}_{c.unit}"
        seen[about] += 1
        ending = about if seen[about] == 1 else f"{about}_{seen[about]}"
        figures = {
            "curve": curve(c).figure(),
            "labels": _grid(c, _labels(c)),
            "calibration": calibration(c).figure(),
        }
        if c.comparisons:
            what = "row minus column, weighted F1, and p (Holm); shaded at 0.05"
            figures["differences"] = _grid(c, _differences(c), what)
        if (steps := training(report, c)).lines:
            figures["training"] = steps.figure()
        for name, figure in figures.items():
            written += save(figure, folder / f"{name}_{ending}")
    return sorted(written, key=lambda path: path.suffix)


@styled
def _grid(collection: Collection, rows: list[list[dict[str, Any]]], about: str = "") -> Figure:
    """A page's table of settings, drawn."""
    names, height = collection.names, 0.5 if "small" in rows[0][-1] else 0.24
    figure, (axes,) = new_figure(2.4 + 0.75 * len(names), 1.5 + height * len(rows))
    axes.set(title=collection.title, xlabel=about)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), [head["text"] for head, *_ in rows])
    for i, (_, *cells) in enumerate(rows):
        for j, cell in enumerate(cells):
            paper, ink = cell.get("colours", ("white", INK))
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=paper, edgecolor="white"))
            text = "\n".join(filter(None, (cell["text"], cell.get("small"))))
            axes.text(j, i, text, ha="center", va="center", color=ink)
    return figure
