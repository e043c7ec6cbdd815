# SPDX-License-Identifier: Apache-2.0
"""Whole private runs on both sides, over seeds, each in a process of its own."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp.config import Config
from jaxdp.evaluation.metrics import classification_metrics, scores
from jaxdp.evaluation.statistics import over_reports, over_seeds
from jaxdp.models.tasks import TASKS
from jaxdp.run.directory import RunError
from jaxdp.training.setup import load_inputs

from .job import SIDES, Job, Outcome
from .process import Failed, Process
from .side import finish
from .start import make_job


@dataclasses.dataclass(frozen=True)
class Pair:
    """One starting point, trained by both sides."""

    recipe: str
    seed: int
    job: Job
    outcomes: dict[str, Outcome]
    """By side."""

    @property
    def epsilon(self) -> float | None:
        """The target; None without privacy."""
        return self.job.config.privacy.epsilon if self.job.private else None

    def rows(self) -> list[dict[str, Any]]:
        """JSON-ready, one per side."""
        rows = []
        for side, outcome in self.outcomes.items():
            metrics = classification_metrics(
                outcome.probabilities,
                self.job.test.labels,
                self.job.label_names,
                self.job.config.data.task,
            )
            values = {k: v for k, v in vars(outcome).items() if k != "probabilities"}
            rows.append(
                {"recipe": self.recipe, "target_epsilon": self.epsilon, "seed": self.seed}
                | {"side": side, "reports_per_second": outcome.reports_per_second}
                | scores(metrics)
                | values
            )
        return rows


def compare_runs(
    configs: Sequence[Config],
    epsilons: Sequence[float],
    seeds: int,
    folder: Path,
    options: Mapping[str, Any],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Every configuration, epsilon and seed on both sides; without epsilons, each configuration's
    own. What is finished in `folder` is not repeated.

    Args:
        folder: for jobs and outcomes; as private as the reports.
        options: of `torch_side.TorchTrainer`.
        report: told what was done, in one line.

    Returns:
        JSON-ready: "summary", "runs" and "settings".
    """
    recipes = [
        dataclasses.replace(config, privacy=dataclasses.replace(config.privacy, epsilon=epsilon))
        for config in configs
        for epsilon in epsilons or [config.privacy.epsilon]
    ]
    pairs = [
        _run_pair(config, seed, folder, options, report)
        for seed in range(seeds)
        for config in recipes
    ]
    settings = {
        f"{pair.recipe}, epsilon {pair.epsilon}": {s: o.settings for s, o in pair.outcomes.items()}
        for pair in pairs
    }
    runs = [row for pair in pairs for row in pair.rows()]
    return {"summary": summarise(pairs), "runs": runs, "settings": settings}


def _run_pair(
    config: Config,
    seed: int,
    folder: Path,
    options: Mapping[str, Any],
    report: Callable[[str], None],
) -> Pair:
    """Trains both sides, one after the other, from what is there already: the job, and outcomes of
    earlier calls with the same settings. Odd seeds begin with PyTorch.

    Raises:
        RunError: `folder` holds a run of other settings, or a side has failed.
    """
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, research_seed=seed))
    privacy = config.privacy
    recipe, epsilon = config.run.name, privacy.epsilon if privacy.private else "none"
    name = f"{recipe}, epsilon {epsilon}, seed {seed}"
    job_folder = folder / name.replace(", ", "_").replace(" ", "_")
    job = _job(config, job_folder, report)
    options = dict(options) if job.private else {**options, "method": "none"}
    programs = {
        "jaxdp": ("jaxdp", "jax_side", {}),
        "PyTorch": ("_".join(["pytorch", *map(str, options.values())]), "torch_side", options),
    }
    outcomes = {}
    for side in SIDES if seed % 2 == 0 else reversed(SIDES):
        target, module, arguments = programs[side]
        target = job_folder / target
        if not (target / "outcome.json").exists():
            _run_process(module, job_folder, arguments, target)
        outcomes[side] = outcome = Outcome.read(target)
        report(
            f"{name}, {side}: {outcome.training_seconds:.1f} s of training after "
            f"{outcome.setup_seconds:.1f} s, {outcome.reports_per_second:.1f} reports/s"
        )
    return Pair(recipe, seed, job, {side: outcomes[side] for side in SIDES})


def summarise(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """JSON-ready; one row for each recipe and epsilon, over its seeds.

    Intervals are 95 %; an end that one seed cannot give is None.
    """
    groups: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.recipe, pair.epsilon), []).append(pair)
    rows = []
    for (recipe, epsilon), group in groups.items():
        results = {s: [p.outcomes[s] for p in group] for s in SIDES}
        found = [{row["side"]: row["weighted_f1"] for row in pair.rows()} for pair in group]
        row = {"recipe": recipe, "epsilon": epsilon, "seeds": [p.seed for p in group]}
        for side, outcomes in results.items():
            row[side] = {
                "weighted_f1": _finite(over_seeds([score[side] for score in found])),
                "reports_per_second": float(np.median([o.reports_per_second for o in outcomes])),
                "seconds": float(
                    np.median([o.setup_seconds + o.training_seconds for o in outcomes])
                ),
                "peak_memory": max(o.peak_memory for o in outcomes),
                "epsilon": outcomes[0].epsilon,
            }
        difference = [score["jaxdp"] - score["PyTorch"] for score in found]
        decide = TASKS[group[0].job.config.data.task].decide
        decisions = [[decide(o.probabilities) for o in results[side]] for side in SIDES]
        row["difference"] = {
            "over_seeds": _finite(over_seeds(difference)),
            "over_reports": _finite(over_reports(*decisions, group[0].job.test.labels)),
        }
        rows.append(row)
    return rows


def _finite(interval: tuple[float, ...]) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in interval]


def _job(config: Config, folder: Path, report: Callable[[str], None]) -> Job:
    if not (folder / "job.json").exists():
        began = time.time()
        make_job(config, load_inputs(config), folder)
        report(f"{folder.name}: start made in {time.time() - began:.1f} s")
    job = Job.read(folder)
    if job.config != config:
        raise RunError(f"{folder} holds a run of other settings; choose another --output")
    return job


def _run_process(side: str, job: Path, options: Mapping[str, Any], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    log = target / "log.txt"
    with Process(log) as process:
        try:
            process.call(finish, side, job, options, process.began, target)
        except Failed as error:
            raise RunError(f"{side}: {error}; see {log}") from None
