# SPDX-License-Identifier: Apache-2.0
"""The comparison's tables, for the screen and for the page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .job import SIDES

_DIFFERENCES = ("over_seeds", "over_reports")


def settings_rows(
    settings: Mapping[str, Mapping[str, Any]],
) -> Iterable[tuple[str, str, str, str]]:
    """(name, ours, theirs, "differs" or "") of every setting, read from both sides' objects."""
    ours, theirs = (settings[side] for side in SIDES)
    for name in ours:
        # JSON makes lists of tuples
        a, b = cell_text(ours[name]), cell_text(theirs[name])
        yield name, a, b, "" if a == b else "differs"


def result_table(level: str, result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a level's numbers, for the screen and the page."""
    if level == "runs":
        return _summary_table(result["summary"])
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


RUN_HEADER = (
    *("recipe", "epsilon", "seed", "side", "weighted F1", "micro", "macro", "reports/s"),
    *("setup s", "first step s", "other steps s", "peak GB", "stated epsilon"),
)


def run_row(r: Mapping[str, Any]) -> list[str]:
    """One of `runs.Pair.rows`, under `RUN_HEADER`."""
    seconds = (r[f"{part}_seconds"] for part in ("setup", "first_step", "later"))
    scores = (r[f"{average}_f1"] for average in ("weighted", "micro", "macro"))
    cells = (r["recipe"], r["target_epsilon"], r["seed"], r["side"], *scores)
    cells += (r["reports_per_second"], *seconds, r["peak_memory"] / 1e9, _stated(r["epsilon"]))
    return [cell_text(cell) for cell in cells]


def _summary_table(summary: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
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
        name = [row["recipe"], cell_text(row["epsilon"])]
        for side in SIDES:
            found = row[side]
            rows.append(
                [*name, side, _interval(found["weighted_f1"])]
                + [f"{found['reports_per_second']:.1f}", f"{found['seconds']:.0f}"]
                + [f"{found['peak_memory'] / 1e9:.2f}", _stated(found["epsilon"])]
            )
        ratio = [row[SIDES[0]][n] / row[SIDES[1]][n] for n in ("reports_per_second", "seconds")]
        ratio = [f"x {value:.2f}" for value in ratio]
        seeds, reports = (_interval(row["difference"][of], "+") for of in _DIFFERENCES)
        rows.append([*name, "gap, other seeds", seeds, *ratio, "", ""])
        rows.append([*name, "gap, other reports", reports, "", "", "", ""])
    return header, rows


def _stated(epsilon: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in epsilon.items())


def _interval(interval: Sequence[float | None], sign: str = "") -> str:
    mean, low, high = interval
    if low is None:
        return f"{mean:{sign}.3f}"
    return f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def cell_text(value: Any) -> str:
    """A setting or a number for people."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
