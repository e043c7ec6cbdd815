# SPDX-License-Identifier: Apache-2.0
"""The study's table (arXiv 2506.04450) filled with finished runs: weighted F1 by data, model and
epsilon."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from jaxdp.run.directory import RunError, stored_config

from .members import Place

EPSILONS = (None, 10.0, 1.0, 0.1, 0.01)
"""The study's; None is without privacy."""
DATASETS = {"mimic": "MIMIC-CXR", "ctrate": "CT-RATE", "padchest": "PadChest", "openi": "Open-I"}
PUBLISHED = (
    "Published: MIMIC-CXR 0.90 without privacy (LoRA), 0.88 with moderate privacy; in a later "
    "version 0.89, and 0.96 for full fine-tuning. CT-RATE 0.78 without and 0.59 with privacy."
)
MODELS = ("bert-medium", "bert-small", "albert-base-v2")


def read_results(runs: Path) -> list[tuple[Place, float]]:
    """Weighted F1 on the test split of all finished runs directly under a folder, by name.

    Raises:
        RunError: there is no such folder, or a finished run in it cannot be read.
    """
    if not runs.is_dir():
        raise RunError(f"{runs} is no folder of runs")
    return [_read(path.parent) for path in sorted(runs.glob("*/metrics.json"))]


def _read(run: Path) -> tuple[Place, float]:
    place, file = Place.of(stored_config(run)), run / "metrics.json"
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        return place, float(metrics["test"]["weighted_f1"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{file} is damaged, or there was no test split") from None


def paper_table(results: Iterable[tuple[Place, float]]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows of cells): one row for each data set, model, mode and unit; one column for
    each epsilon.

    The study's rows are there even without a run; other runs add rows, and other epsilons columns.
    A cell is the mean over runs that differ in seed or recipe alone, and how many if several;
    "-" where none has been run.
    """
    cells: dict[tuple, dict[float | None, list[float]]] = {
        (source, model, "lora", "report"): {} for source in ("mimic", "ctrate") for model in MODELS
    }
    for (*row, epsilon), score in results:
        cells.setdefault(tuple(row), {}).setdefault(epsilon, []).append(score)
    others = {e for row in cells.values() for e in row} - set(EPSILONS)
    columns = [None, *sorted({*EPSILONS[1:], *others}, reverse=True)]
    headings = ["data", "model", "trained", "unit"]
    headings += ["none" if e is None else f"{e:g}" for e in columns]
    order = [*DATASETS, *sorted({source for source, *_ in cells} - DATASETS.keys())]
    rows = []
    for key in sorted(cells, key=lambda key: (order.index(key[0]), *key[1:])):
        source, *names = key
        scores = [_cell(cells[key].get(e, [])) for e in columns]
        rows.append([DATASETS.get(source, source), *names, *scores])
    return headings, rows


def _cell(scores: list[float]) -> str:
    if not scores:
        return "-"
    return f"{statistics.fmean(scores):.3f}" + (f" ({len(scores)})" if len(scores) > 1 else "")
