# SPDX-License-Identifier: Apache-2.0
"""What the rounds of a benchmark say: medians, ratios within a round, and their table."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .contenders import CONTENDERS
from .job import Job


@dataclasses.dataclass
class Record:
    """What one contender did."""

    job: Job | None = None
    error: str | None = None
    setup_seconds: float = 0.0
    tried: dict[str, float] = dataclasses.field(default_factory=dict)
    """Reports at once -> seconds."""
    first: dict[str, Any] | None = None
    """Answer to the first step, which compiles; see `Side.turn`."""
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Answers, round by round."""

    def per_second(self, what: str) -> list[float]:
        """A count of the answers over seconds, round by round."""
        return [answer[what] / answer["seconds"] for answer in self.steps]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, least and greatest."""
    found = np.percentile(list(values), [50, 0, 100]).tolist()
    return dict(zip(("median", "min", "max"), found, strict=True))


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """`spread` of over[i] / under[i]: of the same round, where the machine was the same."""
    return spread(a / b for a, b in zip(over, under, strict=True))


def summarise(records: Mapping[str, Record], matmul: float) -> dict[str, dict[str, Any]]:
    """JSON-ready, by contender; one with an error has that, and nothing else.

    Args:
        records: of `benchmark.Rounds`.
        matmul: the machine's best rate, GFLOP/s.
    """
    table = {name: {"error": record.error} for name, record in records.items()}
    through = {name: r for name, r in records.items() if r.steps and r.error is None}
    for name, record in through.items():
        row, contender = table[name], CONTENDERS[name]
        row |= _row(record, matmul)
        if baseline := through.get(contender.baseline):
            row["baseline"] = contender.baseline
            row["baseline_over_this"] = ratio(
                baseline.per_second("reports"), record.per_second("reports")
            )
            row["wanted"] = contender.wanted if row["settings"]["device"] == "cpu" else None
    return table


def _row(record: Record, matmul: float) -> dict[str, Any]:
    steps, first, rates = record.steps, record.first, record.per_second("reports")
    gflops = spread(rate / 1e9 for rate in record.per_second("flops"))
    total = {k: sum(s[k] for s in steps) for k in ("tokens", "positions", "flops", "useful_flops")}
    usual = first["reports"] / float(np.median(rates))
    return {
        "reports_per_second": spread(rates),
        "tokens_per_second": spread(record.per_second("tokens")),
        "step_seconds": spread(answer["seconds"] for answer in steps),
        "gflops": gflops,
        "utilisation": gflops["median"] / matmul,
        "useful_flops": total["useful_flops"] / total["flops"],
        "padding": 1 - total["tokens"] / total["positions"],
        "peak_memory": max(answer["peak_memory"] for answer in steps),
        "device_memory": max(answer["device_memory"] for answer in steps),
        "setup_seconds": record.setup_seconds,
        "first_step_seconds": record.setup_seconds + first["seconds"],
        # What the first step took beyond a later one on as many reports.
        "compile_seconds": max(first["seconds"] - usual, 0.0),
        "idle_cpu": max(a["idle_cpu_seconds"] / max(a["idle_seconds"], 1.0) for a in steps),
        "physical_batches_tried": record.tried,
        "settings": steps[-1]["settings"],
        "rounds": steps,
    }


def _range(values: Mapping[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"


def _wanted(row: Mapping[str, Any]) -> str:
    least = row.get("wanted")
    if least is None:
        return ""
    met = row["baseline_over_this"]["median"] >= least
    return f">= {least:.3g}, {'met' if met else 'missed'}"


_COLUMNS = {
    "device": lambda row: row["settings"]["device"],
    "dtype": lambda row: row["settings"]["arithmetic"],
    "reports/s": lambda row: _range(row["reports_per_second"], ".1f"),
    "ours is": lambda row: (
        f"{_range(row['baseline_over_this'], '.2f')} x" if "baseline" in row else ""
    ),
    "wanted": _wanted,
    "tokens/s": lambda row: f"{row['tokens_per_second']['median']:,.0f}",
    "GFLOP/s": lambda row: f"{row['gflops']['median']:.0f}",
    "of matmul": lambda row: f"{row['utilisation']:.0%}",
    "useful": lambda row: f"{row['useful_flops']:.0%}",
    "padding": lambda row: f"{row['padding']:.0%}",
    "peak GB": lambda row: f"{row['peak_memory'] / 1e9:.2f}",
    "device GB": lambda row: f"{row['device_memory'] / 1e9:.2f}" if row["device_memory"] else "",
    "compile s": lambda row: f"{row['compile_seconds']:.1f}",
    "first step s": lambda row: f"{row['first_step_seconds']:.1f}",
}
HEADER = ("contender", *_COLUMNS)


def rows(summary: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Cells under `HEADER`; ranges are least to greatest over rounds."""
    return [
        [name, *(cell(row) for cell in _COLUMNS.values())]
        if "step_seconds" in row
        else [name, row["error"] or "no step"] + [""] * (len(_COLUMNS) - 1)
        for name, row in summary.items()
    ]
