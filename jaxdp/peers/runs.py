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
        job = self.job
        what = {"recipe": self.recipe, "target_epsilon": self.epsilon, "seed": self.seed}
        rows = []
        for side, outcome in self.outcomes.items():
            metrics = classification_metrics(
                outcome.probabilities, job.test.labels, job.label_names, job.config.data.task
            )
            rate = outcome.reports_per_second
            row = what | {"side": side, "reports_per_second": rate}
            rows.append(row | scores(metrics) | outcome.values())
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

    Raises:
        RunError: `folder` holds a run of other settings, or a side has failed.
    """
    pairs = []
    for seed in range(seeds):
        for config in configs:
            for epsilon in epsilons or [config.privacy.epsilon]:
                privacy = dataclasses.replace(config.privacy, epsilon=epsilon)
                run = dataclasses.replace(config.run, research_seed=seed)
                own = dataclasses.replace(config, privacy=privacy, run=run)
                pairs.append(_run_pair(own, folder, options, report))
    settings = {
        f"{pair.recipe}, epsilon {pair.epsilon}": {s: o.settings for s, o in pair.outcomes.items()}
        for pair in pairs
    }
    runs = [row for pair in pairs for row in pair.rows()]
    return {"summary": summarise(pairs), "runs": runs, "settings": settings}


def _run_pair(
    config: Config, folder: Path, options: Mapping[str, Any], report: Callable[[str], None]
) -> Pair:
    """Trains both sides, one after the other, from what is there already: the job, and outcomes of
    earlier calls with the same settings. Odd seeds begin with PyTorch."""
    recipe, seed, privacy = config.run.name, config.run.research_seed, config.privacy
    name = f"{recipe}, epsilon {privacy.epsilon if privacy.private else 'none'}, seed {seed}"
    place = folder / name.replace(", ", "_").replace(" ", "_")
    if not (place / "job.json").exists():
        began = time.time()
        make_job(config, load_inputs(config), place)
        report(f"{place.name}: start made in {time.time() - began:.1f} s")
    job = Job.read(place)
    if job.config != config:
        raise RunError(f"{place} holds a run of other settings; choose another --output")
    options = dict(options) if job.private else {**options, "method": "none"}
    programs = {
        "jaxdp": ("jaxdp", "jax_side", {}),
        "PyTorch": ("_".join(["pytorch", *map(str, options.values())]), "torch_side", options),
    }
    outcomes = {}
    for side in SIDES if seed % 2 == 0 else reversed(SIDES):
        target, module, arguments = programs[side]
        target = place / target
        if not (target / "outcome.json").exists():
            _train(module, place, arguments, target)
        outcomes[side] = outcome = Outcome.read(target)
        report(
            f"{name}, {side}: {outcome.seconds - outcome.setup_seconds:.1f} s of training after "
            f"{outcome.setup_seconds:.1f} s, {outcome.reports_per_second:.1f} reports/s"
        )
    return Pair(recipe, seed, job, {side: outcomes[side] for side in SIDES})


def _train(module: str, job: Path, options: Mapping[str, Any], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    log = target / "log.txt"
    with Process(log) as process:
        try:
            process.call(finish, module, job, options, process.began, target)
        except Failed as error:
            raise RunError(f"{module}: {error}; see {log}") from None


def summarise(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """JSON-ready; one row for each recipe and epsilon, over its seeds.

    Intervals are 95 %; an end that one seed cannot give is None.
    """
    groups: dict[tuple, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.recipe, pair.epsilon), []).append(pair)
    rows = []
    for (recipe, epsilon), group in groups.items():
        found = [{row["side"]: row["weighted_f1"] for row in pair.rows()} for pair in group]
        decide = TASKS[group[0].job.config.data.task].decide
        row = {"recipe": recipe, "epsilon": epsilon, "seeds": [pair.seed for pair in group]}
        decisions = []
        for side in SIDES:
            outcomes = [pair.outcomes[side] for pair in group]
            decisions.append([decide(outcome.probabilities) for outcome in outcomes])
            row[side] = {
                "weighted_f1": _finite(over_seeds([score[side] for score in found])),
                "reports_per_second": float(np.median([o.reports_per_second for o in outcomes])),
                "seconds": float(np.median([o.seconds for o in outcomes])),
                "peak_memory": max(o.peak_memory for o in outcomes),
                "epsilon": outcomes[0].epsilon,
            }
        differences = [score["jaxdp"] - score["PyTorch"] for score in found]
        row["difference"] = {
            "over_seeds": _finite(over_seeds(differences)),
            "over_reports": _finite(over_reports(*decisions, group[0].job.test.labels)),
        }
        rows.append(row)
    return rows


def _finite(interval: tuple[float, ...]) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in interval]
