# SPDX-License-Identifier: Apache-2.0
"""One side against the other: gradients of one batch, several steps, and whole runs."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxdp.evaluation.metrics import classification_metrics, scores
from jaxdp.evaluation.statistics import finite, over_reports, over_seeds
from jaxdp.files import write_json
from jaxdp.models.tasks import TASKS
from jaxdp.run.directory import RunError

from .contenders import OURS, TORCH
from .jax_side import OurTrainer
from .job import MAIN, SIDES, Job
from .process import Failed, Process
from .side import ask, begin
from .start import move_adapter
from .torch_side import TorchTrainer

GRADIENT_TOLERANCE = 1e-4
"""Of float32 against float32, relative to the largest entry of a tensor; Opacus' clip factor
C / (norm + 1e-6) alone is 3e-5 off at a norm of 0.03."""
TRAJECTORY_TOLERANCE = {"sgd": 1e-4, "adam": 1e-2}
"""Distance between the adapters over the distance moved. Adam divides a gradient by its own size:
entries that are zero but for rounding move as far as any other, either way."""


def compare(job: Job, level: str, count: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """`compare_gradients` of `count` reports at the start of the main stage, moved a little off it
    in the job's folder, or `compare_trajectories` of `count` steps ("trajectory") from there; with
    the settings of both sides. `options` are those of `TorchTrainer`.
    """
    if level == "gradients":
        move_adapter(job)
        result = compare_gradients(job, count, options["physical_batch"])
    else:
        result = compare_trajectories(job, count, **options)
    sides = (OurTrainer(job), TorchTrainer(job, **options))
    settings = {name: side.settings() for name, side in zip(SIDES, sides, strict=True)}
    return result | {"settings": {job.name: settings}}


def compare_gradients(job: Job, reports: int, physical_batch: int = 16) -> dict[str, Any]:
    """Norms and clipped sum of the first training reports, at the job's adapter, without noise.

    Four ways: ours, Opacus' hooks, Opacus' ghost clipping, and one ordinary PyTorch backward pass
    per report. Ghost clipping refuses shared layers (ALBERT); that is then said instead.

    Returns:
        JSON-ready. Errors are against ours: of a tensor relative to its largest entry, of a norm
        relative to itself or, if larger, the clip norm. PyTorch rounds the gradient of a loss near
        zero: at norms of C / 1000 it was 1e-3 off the float64 value, ours 1e-5, which no sum shows.
        "small norms" has these errors too: relative to the norm itself, not judged.
    """
    rows = np.arange(min(reports, len(job.train)))
    few = job.train.take(rows)
    job = dataclasses.replace(job.without_noise(), train=few, test=few)
    clip_norm = job.mechanisms[MAIN]["l2_clip_norm"]
    norms, total = OurTrainer(job).clipped_sum()
    found, refused = {}, {}
    methods = {"PyTorch loop": "none", "Opacus hooks": "hooks", "Opacus ghost": "ghost"}
    for way, method in methods.items():
        trainer = TorchTrainer(job, method=method, physical_batch=physical_batch)
        try:
            their_norms, their_sum = trainer.clipped_sum(rows)
        except NotImplementedError as error:
            refused[way] = str(error)
            continue
        difference = np.abs(their_norms - norms)
        found[way] = {
            "norms": float(np.max(difference / np.maximum(norms, clip_norm))),
            "small norms": float(np.max(difference / norms)),
            "sums": {
                name: float(np.abs(value - total[name]).max() / np.abs(total[name]).max())
                for name, value in their_sum.items()
            },
        }
    worst = max(max(e["norms"], *e["sums"].values()) for e in found.values())
    return {
        "reports": len(rows),
        "clipped": float(np.mean(norms > clip_norm)),
        "l2_clip_norm": clip_norm,
        "norms": np.percentile(norms, [0, 50, 100]).tolist(),
        "tolerance": GRADIENT_TOLERANCE,
        "errors": found,
        "refused": refused,
        "passed": worst <= GRADIENT_TOLERANCE,
    }


def compare_trajectories(job: Job, steps: int, **options) -> dict[str, Any]:
    """`steps` whole steps (at most the run's, whose schedule it is) on the reports that our sampler
    draws, without noise, on both sides. `options` are those of `TorchTrainer`.

    Returns:
        JSON-ready; errors are distances over the distance moved.
    """
    job = job.without_noise()
    ours, theirs = OurTrainer(job), TorchTrainer(job, **options)
    start = ours.adapters()
    by_step, reports = [], []
    for rows in itertools.islice(ours.draws(), steps):
        ours.step(rows)
        theirs.step(rows)
        reports.append(len(rows))
        a, b = ours.adapters(), theirs.adapters()
        moved = _distance(a, start)
        by_step.append(_distance(a, b) / moved)
    tolerance = TRAJECTORY_TOLERANCE[job.stage.optimizer]
    return {
        "steps": len(by_step),
        "reports": reports,
        "moved": moved / _distance(start, {n: 0.0 for n in start}),
        "tolerance": tolerance,
        "error_by_step": by_step,
        "errors": {n: _distance({n: a[n]}, b) / moved for n in a},
        "passed": max(by_step) <= tolerance,
    }


def _distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Euclidean, over all tensors of `a`."""
    return float(np.sqrt(sum(np.square(a[n] - b[n]).sum() for n in a)))


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
    """Every job on both sides, each in a process of its own, one after the other; odd seeds begin
    with PyTorch. What is finished in a job's folder, with these options, is not repeated.

    Args:
        options: of `TorchTrainer`.
        report: told what was done, in one line.

    Returns:
        JSON-ready: "summary", "runs" and "settings".

    Raises:
        RunError: a side has failed.
    """
    runs: list[Run] = []
    settings: dict[str, dict[str, Any]] = {}
    for job in jobs:
        both = {}
        for side in SIDES if job.seed % 2 == 0 else reversed(SIDES):
            both[side] = _trained(job, side, options)
            report(
                "{recipe}, epsilon {target_epsilon}, seed {seed}, {side}: {first_step_seconds:.1f} "
                "+ {later_seconds:.1f} s of training after {setup_seconds:.1f} s, "
                "{reports_per_second:.1f} reports/s".format(**both[side].row)
            )
        runs += [both[side] for side in SIDES]
        settings[f"{job.name}, epsilon {job.epsilon}"] = {
            side: both[side].row["settings"] for side in SIDES
        }
    return {"summary": summarise(runs), "runs": [run.row for run in runs], "settings": settings}


def _trained(job: Job, side: str, options: Mapping[str, Any]) -> Run:
    """The job on this side, from the job's folder where it is finished there."""
    ours = side == SIDES[0]
    options = {} if ours else {**options, "method": options["method"] if job.private else "none"}
    target = job.adapter.parent / "_".join([side.lower(), *map(str, options.values())])
    done = target / "outcome.json"  # written last
    if not done.exists():
        target.mkdir(parents=True, exist_ok=True)
        log = target / "log.txt"
        with Process(log) as process:
            try:
                program = OURS if ours else TORCH
                setup = process.call(begin, program, job, options, process.began)
                outcome, probabilities = process.call(ask, "train")
            except Failed as error:
                raise RunError(f"{side}: {error}; see {log}") from None
        np.save(target / "probabilities.npy", probabilities)
        write_json(done, {"setup_seconds": setup} | outcome)
    outcome = json.loads(done.read_text("utf-8"))
    return run_of(job, side, outcome, np.load(target / "probabilities.npy"))


def run_of(job: Job, side: str, outcome: Mapping[str, Any], probabilities: np.ndarray) -> Run:
    """Of a side's `Side.train`; throughput is that after the first step, 0 if there was none."""
    reports, later, labels = outcome["reports"], outcome["later_seconds"], job.test.labels
    metrics = classification_metrics(probabilities, labels, job.label_names, job.task)
    row = {
        "recipe": job.name,
        "target_epsilon": job.epsilon,
        "seed": job.seed,
        "side": side,
        "reports_per_second": sum(reports[1:]) / later if len(reports) > 1 else 0.0,
    }
    row |= scores(metrics) | outcome
    return Run(row, TASKS[job.task].decide(probabilities), labels)


def summarise(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """JSON-ready; one row for each recipe and epsilon, over its seeds.

    Intervals are 95 %; an end that one seed cannot give is None.
    """
    groups: dict[tuple, dict[str, list[Run]]] = {}
    for run in runs:
        name = (run.row["recipe"], run.row["target_epsilon"])
        groups.setdefault(name, {side: [] for side in SIDES})[run.row["side"]].append(run)
    summary, parts = [], ("setup", "first_step", "later")
    for (recipe, epsilon), sides in groups.items():
        row, f1 = {"recipe": recipe, "epsilon": epsilon}, []
        for side, group in sides.items():
            rows = [run.row for run in group]
            row["seeds"] = [each["seed"] for each in rows]
            f1.append(np.array([each["weighted_f1"] for each in rows]))
            seconds = [sum(each[f"{part}_seconds"] for part in parts) for each in rows]
            row[side] = {
                "weighted_f1": finite(over_seeds(f1[-1])),
                "reports_per_second": float(np.median([r["reports_per_second"] for r in rows])),
                "seconds": float(np.median(seconds)),
                "peak_memory": max(each["peak_memory"] for each in rows),
                "epsilon": rows[0]["epsilon"],
            }
        decisions = ([run.decisions for run in group] for group in sides.values())
        labels = sides[SIDES[0]][0].labels
        row["difference"] = {
            "over_seeds": finite(over_seeds(f1[0] - f1[1])),
            "over_reports": finite(over_reports(*decisions, labels)),
        }
        summary.append(row)
    return summary
