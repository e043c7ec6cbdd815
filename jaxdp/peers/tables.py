# SPDX-License-Identifier: Apache-2.0
"""The comparison's tables, for the screen and for the page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .job import ADAPTER_PREFIX, SIDES


def settings_rows(settings: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str, str, str]]:
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
        errors = {"difference / distance moved": errors}
    else:
        errors = {way: found | found["sums"] for way, found in errors.items()}
    names = [name for name in next(iter(errors.values())) if name != "sums"]
    rows = [
        [name.removeprefix(ADAPTER_PREFIX), *(f"{e[name]:.1e}" for e in errors.values())]
        for name in names
    ]
    return ["", *errors], rows


_RUN = {
    "recipe": "recipe",
    "epsilon": "target_epsilon",
    "seed": "seed",
    "side": "side",
    "weighted F1": "weighted_f1",
    "micro": "micro_f1",
    "macro": "macro_f1",
    "reports/s": "reports_per_second",
    "setup s": "setup_seconds",
    "first step s": "first_step_seconds",
    "other steps s": "later_seconds",
}
RUN_HEADER = (*_RUN, "peak GB", "stated epsilon")


def run_row(row: Mapping[str, Any]) -> list[str]:
    """Of `comparison.Run`, under `RUN_HEADER`."""
    cells = [cell_text(row[name]) for name in _RUN.values()]
    return [*cells, cell_text(row["peak_memory"] / 1e9), _stated(row["epsilon"])]


def _summary_table(summary: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of `comparison.summarise`."""
    costs = ("reports/s", "seconds", "peak GB", "stated epsilon")
    rows = []
    for row in summary:
        name = [row["recipe"], cell_text(row["epsilon"])]
        for side in SIDES:
            found = row[side]
            rows.append(
                [*name, side, interval_text(found["weighted_f1"])]
                + [f"{found['reports_per_second']:.1f}", f"{found['seconds']:.0f}"]
                + [f"{found['peak_memory'] / 1e9:.2f}", _stated(found["epsilon"])]
            )
        ours, theirs = (row[side] for side in SIDES)
        ratios = [f"x {ours[n] / theirs[n]:.2f}" for n in ("reports_per_second", "seconds")]
        seeds, reports = (
            interval_text(row["difference"][of], "+") for of in ("over_seeds", "over_reports")
        )
        rows.append([*name, "gap, other seeds", seeds, *ratios, "", ""])
        rows.append([*name, "gap, other reports", reports, "", "", "", ""])
    return ["recipe", "epsilon", "", "weighted F1", *costs], rows


def _stated(epsilon: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in epsilon.items())


def interval_text(interval: Sequence[float | None], sign: str = "") -> str:
    """Mean and, where they are known, ends."""
    mean, low, high = interval
    ends = "" if low is None else f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{mean:{sign}.3f}{ends}"


def cell_text(value: Any) -> str:
    """A setting or a number for people."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
