# SPDX-License-Identifier: Apache-2.0
"""Whole private runs on both sides, over seeds, each in a process of its own."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdp.evaluation.metrics import classification_metrics, scores
from jaxdp.evaluation.statistics import over_reports, over_seeds
from jaxdp.files import write_json
from jaxdp.models.tasks import TASKS
from jaxdp.run.directory import RunError

from .contenders import OURS, TORCH
from .job import SIDES, Job
from .process import Failed, Process
from .side import ask, begin

PARTS = ("setup", "first_step", "later")
"""Of a run's time, in order."""


class Run(NamedTuple):
    """A job that one side has trained."""

    row: dict[str, Any]
    """JSON-ready: which, what it took, and its scores on the test reports."""
    decisions: np.ndarray
    """[n, num_labels]"""
    labels: np.ndarray
    """[n, num_labels]: 1, 0, or -1 for unknown."""


def compare_runs(
    jobs: Iterable[Job], options: Mapping[str, Any], report: Callable[[str], None]
) -> dict[str, Any]:
    """Every job on both sides, one after the other; odd seeds begin with PyTorch. What is finished
    in a job's folder, with these options, is not repeated.

    Args:
        options: of `torch_side.TorchTrainer`.
        report: told what was done, in one line.

    Returns:
        JSON-ready: "summary", "runs" and "settings".

    Raises:
        RunError: a side has failed.
    """
    runs: list[Run] = []
    for job in jobs:
        trained = {}
        for side in SIDES if job.seed % 2 == 0 else reversed(SIDES):
            trained[side] = run = _run(job, side, options)
            report(
                "{recipe}, epsilon {target_epsilon}, seed {seed}, {side}: {first_step_seconds:.1f} "
                "+ {later_seconds:.1f} s of training after {setup_seconds:.1f} s, "
                "{reports_per_second:.1f} reports/s".format(**run.row)
            )
        runs += [trained[side] for side in SIDES]
    settings: dict[str, dict[str, Any]] = {}
    for row, *_ in runs:
        both = settings.setdefault("{recipe}, epsilon {target_epsilon}".format(**row), {})
        both[row["side"]] = row["settings"]
    return {
        "summary": summarise(runs),
        "runs": [run.row for run in runs],
        "settings": settings,
    }


def _run(job: Job, side: str, options: Mapping[str, Any]) -> Run:
    """What this side makes of the job, from its folder where it is finished there."""
    name, program = "jaxdp", OURS
    if side == "PyTorch":
        options = dict(options) if job.private else {**options, "method": "none"}
        name, program = "_".join(["pytorch", *map(str, options.values())]), TORCH
    else:
        options = {}
    folder = job.adapter.parent
    target = folder / name
    if not (target / "outcome.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        log = target / "log.txt"
        with Process(log) as process:
            try:
                setup = process.call(begin, program, folder, options, process.began)
                outcome, probabilities = process.call(ask, "train")
            except Failed as error:
                raise RunError(f"{side}: {error}; see {log}") from None
        np.save(target / "probabilities.npy", probabilities)
        # Its presence says that all is there.
        write_json(target / "outcome.json", {"setup_seconds": setup} | outcome)
    outcome = json.loads((target / "outcome.json").read_text("utf-8"))
    return run_of(job, side, outcome, np.load(target / "probabilities.npy"))


def run_of(job: Job, side: str, outcome: Mapping[str, Any], probabilities: np.ndarray) -> Run:
    """Of a side's `Side.train`; throughput is that after the first step, 0 if there was none."""
    reports, later = outcome["reports"], outcome["later_seconds"]
    rate = sum(reports[1:]) / later if len(reports) > 1 else 0.0
    labels = job.test.labels
    metrics = classification_metrics(probabilities, labels, job.label_names, job.task)
    row = {"recipe": job.name, "target_epsilon": job.epsilon, "seed": job.seed, "side": side}
    row |= {"reports_per_second": rate} | scores(metrics) | outcome
    return Run(row, TASKS[job.task].decide(probabilities), labels)


def summarise(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """JSON-ready; one row for each recipe and epsilon, over its seeds.

    Intervals are 95 %; an end that one seed cannot give is None.
    """
    groups: dict[tuple, dict[str, list[Run]]] = {}
    for run in runs:
        name = (run.row["recipe"], run.row["target_epsilon"])
        groups.setdefault(name, {side: [] for side in SIDES})[run.row["side"]].append(run)
    summary = []
    for (recipe, epsilon), sides in groups.items():
        row, f1 = {"recipe": recipe, "epsilon": epsilon}, []
        for side, group in sides.items():
            rows = [run.row for run in group]
            row["seeds"] = [each["seed"] for each in rows]
            f1.append(np.array([each["weighted_f1"] for each in rows]))
            seconds = [sum(each[f"{part}_seconds"] for part in PARTS) for each in rows]
            row[side] = {
                "weighted_f1": _finite(over_seeds(f1[-1])),
                "reports_per_second": float(np.median([r["reports_per_second"] for r in rows])),
                "seconds": float(np.median(seconds)),
                "peak_memory": max(each["peak_memory"] for each in rows),
                "epsilon": rows[0]["epsilon"],
            }
        decisions = ([run.decisions for run in group] for group in sides.values())
        row["difference"] = {
            "over_seeds": _finite(over_seeds(f1[0] - f1[1])),
            "over_reports": _finite(over_reports(*decisions, group[0].labels)),
        }
        summary.append(row)
    return summary


def _finite(interval: Iterable[float]) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in interval]
