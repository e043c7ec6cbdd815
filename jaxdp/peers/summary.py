# SPDX-License-Identifier: Apache-2.0
"""Medians, ratios within a round, and tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .contenders import CONTENDERS
from .inputs import MODEL_NAMES
from .rounds import Record

_PEERS = ("minilm-l6", "bert-small", "bert-medium")
GOALS = (
    ("DP step / non-private step", "ours-nonprivate", "ours", 0.0, 1.05, MODEL_NAMES),
    ("ours / Opacus, fixed padding", "ours", "opacus-fixed", 2.0, np.inf, _PEERS),
    ("ours / Opacus, dynamic padding", "ours", "opacus-dynamic", 1.7, np.inf, _PEERS),
    ("ours / Opacus, sorted by length", "ours", "opacus-sorted", 1.7, np.inf, _PEERS),
    ("ours / JAX-Privacy, padded", "ours", "jax-privacy", 1.5, np.inf, _PEERS),
    ("last 2 / Opacus, fixed", "ours-last2", "opacus-last2-fixed", 4.0, np.inf, _PEERS),
    ("last 2 / Opacus, dynamic", "ours-last2", "opacus-last2-dynamic", 4.0, np.inf, _PEERS),
    ("last 2 / Opacus, sorted", "ours-last2", "opacus-last2-sorted", 4.0, np.inf, _PEERS),
)
"""What is compared, whose reports/s over whose, least and most that is wanted, for which models; at
Open-I's lengths. Sorting goes beyond what was asked of the peer."""


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and greatest."""
    values = list(values)
    return {
        "median": float(np.median(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """`spread` of over[i] / under[i]: of the same round, where the machine was the same."""
    return spread(a / b for a, b in zip(over, under, strict=True))


def rates(record: Record) -> list[float]:
    """Reports per second, round by round."""
    return [answer["reports"] / answer["seconds"] for answer in record.steps]


def summarise(records: Mapping[str, Record], matmul: float) -> dict[str, dict[str, Any]]:
    """JSON-ready, by contender; one with an error has that, and what it did before.

    Args:
        records: of `run_rounds`.
        matmul: the machine's best rate, GFLOP/s.
    """
    return {name: _row(name, record, records, matmul) for name, record in records.items()}


def _row(name: str, record: Record, records: Mapping[str, Record], matmul: float) -> dict[str, Any]:
    row: dict[str, Any] = {"error": record.error}
    if record.error or not record.steps:
        return row
    steps, last = record.steps, record.steps[-1]
    seconds = spread(answer["seconds"] for answer in steps)
    gflops = spread(answer["flops"] / answer["seconds"] / 1e9 for answer in steps)
    first = record.first["seconds"] + record.first["compile_seconds"]
    usual = record.first["reports"] / np.median(rates(record))
    total = {k: sum(s[k] for s in steps) for k in ("tokens", "positions", "flops", "useful_flops")}
    row |= {
        "reports_per_second": spread(rates(record)),
        "tokens_per_second": spread(answer["tokens"] / answer["seconds"] for answer in steps),
        "step_seconds": seconds,
        "gflops": gflops,
        "utilisation": gflops["median"] / matmul,
        "useful_flops": total["useful_flops"] / total["flops"],
        "padding": 1 - total["tokens"] / total["positions"],
        "peak_memory": max(answer["peak_memory"] for answer in steps),
        "setup_seconds": record.setup_seconds,
        "first_step_seconds": record.setup_seconds + first,
        # what the first step took beyond a later one on as many reports
        "compile_seconds": max(first - float(usual), 0.0),
        "idle_cpu": max(a["idle_cpu_seconds"] / max(a["idle_seconds"], 1.0) for a in steps),
        "physical_batches_tried": record.tried,
        "settings": last["settings"],
        "rounds": steps,
    }
    baseline = records.get(CONTENDERS[name].baseline)
    if baseline and not baseline.error:
        row["baseline"] = CONTENDERS[name].baseline
        row["baseline_over_this"] = ratio(rates(baseline), rates(record))
    return row


def goals(
    model: str, lengths: str, records: Mapping[str, Record], matmul: float
) -> list[dict[str, Any]]:
    """JSON-ready: what was aimed at, as far as these records tell: value, wanted, met."""
    found = []
    for what, over, under, least, most, models in GOALS:
        pair = [records.get(name) for name in (over, under)]
        if (
            lengths == "openi"
            and model in models
            and all(r and r.steps and not r.error for r in pair)
        ):
            value = ratio(*map(rates, pair))
            wanted = f">= {least:g}" if least else f"<= {most:g}"
            found.append({"what": what, "value": value, "wanted": wanted})
            found[-1]["met"] = bool(least <= value["median"] <= most)
    ours = records.get("ours")
    if (model, lengths) == ("bert-medium", "openi") and ours and ours.steps and not ours.error:
        value = spread(a["flops"] / a["seconds"] / 1e9 / matmul for a in ours.steps)
        found.append({"what": "ours, of best matmul", "value": value, "wanted": ">= 0.6"})
        found[-1]["met"] = value["median"] >= 0.6
    return found


HEADER = (
    "contender",
    "reports/s",
    "ours is",
    "tokens/s",
    "GFLOP/s",
    "of matmul",
    "useful",
    "padding",
    "peak GB",
    "compile s",
    "first step s",
)


def rows(summary: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells under `HEADER`; ranges are least to greatest over rounds."""
    return [
        [name, row["error"] or "no step"] + [""] * (len(HEADER) - 2)
        if "step_seconds" not in row
        else [
            name,
            _range(row["reports_per_second"], ".1f"),
            f"{_range(row['baseline_over_this'], '.2f')} x" if "baseline" in row else "",
            f"{row['tokens_per_second']['median']:,.0f}",
            f"{row['gflops']['median']:.0f}",
            f"{row['utilisation']:.0%}",
            f"{row['useful_flops']:.0%}",
            f"{row['padding']:.0%}",
            f"{row['peak_memory'] / 1e9:.2f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['first_step_seconds']:.1f}",
        ]
        for name, row in summary.items()
    ]


def goal_rows(found: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Cells: what, value, wanted, met."""
    return [
        [goal["what"], _range(goal["value"], ".2f"), goal["wanted"], "yes" if goal["met"] else "no"]
        for goal in found
    ]


def _range(values: Mapping[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"
