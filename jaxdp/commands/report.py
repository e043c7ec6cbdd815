# SPDX-License-Identifier: Apache-2.0
"""Makes a sweep's page and figures, from whatever of it is finished.

    jaxdp report --sweep runs/sweep_openi
    jaxdp report --sweep runs/sweep_openi --output out --draws 2000

Writes report.html (one file that loads nothing from outside), figures/*.pdf and *.png for a paper,
and with --json the numbers. They hold scores on test and validation reports, which no guarantee
covers, but no report and no id.
"""

from pathlib import Path
from typing import Any

from rich.console import Console

from jaxdp.evaluation.statistics import finite
from jaxdp.report.sweep import sweep_page, write_figures
from jaxdp.sweep.analysis import SweepReport, analyse

from .define import Define

DEFINE = Define()
_SWEEP = DEFINE.string("sweep", None, "Folder of a sweep.", required=True)
_OUTPUT = DEFINE.string("output", None, "Where to write; by default the sweep's folder.")
_DRAWS = DEFINE.integer("draws", 10_000, "Resamples and permutations.", lower_bound=100)
DEFINE.json("Also write scores and comparisons to this file.")


def numbers(report: SweepReport) -> dict[str, Any]:
    """JSON-ready: every setting's scores with intervals, and every comparison."""
    return {
        "sweep": report.description["name"],
        "draws": report.draws,
        "joint": report.description["joint"],
        "collections": [
            {
                "source": c.source,
                "unit": c.unit,
                "reports": c.reports,
                "settings": [
                    {"trained": s.series, "epsilon": s.epsilon, "members": list(s.members)}
                    | {"scores": {k: finite(v) for k, v in s.scores.items()}}
                    | {"over_seeds": {k: finite(v) for k, v in s.seeds.items()}}
                    | {"seconds": s.seconds, "peak_memory": s.peak_memory}
                    for s in c.settings
                ],
                "comparisons": [vars(comparison) for comparison in c.comparisons],
            }
            for c in report.collections
        ],
    }


def main() -> None:
    folder = Path(_SWEEP.value)
    output = Path(_OUTPUT.value or _SWEEP.value)
    report = analyse(folder, _DRAWS.value)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.html").write_text(sweep_page(report), encoding="utf-8")
    figures = write_figures(report, output / "figures")
    DEFINE.write_json(numbers(report))
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{len(report.finished)} of {len(report.members)} members, {len(figures)} figures: "
        f"{output / 'report.html'}, {output / 'figures'}"
    )
