# SPDX-License-Identifier: Apache-2.0
"""Prints the study's table, data x model x epsilon, with the weighted F1 of finished runs.

    jaxdp paper --runs runs
    jaxdp paper --runs runs --markdown table.md

Every run directory under --runs with a metrics.json goes to the cell that its config.json says,
whatever its name; sweep_paper names the members of the whole study. Cells without a
run are "-". Test scores are not covered by the privacy guarantee.
"""

from pathlib import Path

from rich.console import Console

from jaxdp.sweep.paper import PUBLISHED, paper_table, read_results

from . import table
from .define import Define

DEFINE = Define()
_RUNS = DEFINE.string("runs", "runs", "Folder of run directories.")
_MARKDOWN = DEFINE.string("markdown", None, "Also write the table to this file.")
DEFINE.json("Also write the rows to this file.")


def main() -> None:
    headings, rows = paper_table(read_results(Path(_RUNS.value)))
    if _MARKDOWN.value is not None:
        lines = [headings, ["---"] * len(headings), *rows]
        text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        Path(_MARKDOWN.value).write_text(f"{text}\n{PUBLISHED}\n", encoding="utf-8")
    DEFINE.write_json([dict(zip(headings, row, strict=True)) for row in rows])
    title = "weighted F1 on test by epsilon, mean over runs (their number)"
    console = Console()
    console.print(table(title, headings, rows))
    console.print(PUBLISHED)
