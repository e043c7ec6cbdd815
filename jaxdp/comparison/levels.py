# SPDX-License-Identifier: Apache-2.0
"""The three levels of a comparison, from configurations to what the page shows."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdp.baseline.job import Job
from jaxdp.baseline.trainer import TorchTrainer
from jaxdp.config import Config, ConfigError
from jaxdp.training.setup import load_inputs

from .arithmetic import compare_gradients, compare_trajectories
from .ours import OurTrainer
from .runs import SIDES, run_pair, summarise
from .start import make_job, move_adapter


def gradients(config: Config, reports: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """`compare_gradients` at the start of the main stage, moved a little off it."""
    with tempfile.TemporaryDirectory() as folder:
        job = _private_job(config, Path(folder))
        move_adapter(job)
        result = compare_gradients(job, reports, physical_batch=options["physical_batch"])
        return result | {"settings": {config.run.name: _settings(job, options)}}


def trajectory(config: Config, steps: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """`compare_trajectories` from the start of the main stage."""
    with tempfile.TemporaryDirectory() as folder:
        job = _private_job(config, Path(folder))
        result = compare_trajectories(job, steps, **options)
        return result | {"settings": {config.run.name: _settings(job, options)}}


def runs(
    configs: Sequence[Config],
    epsilons: Sequence[float],
    seeds: int,
    folder: Path,
    options: Mapping[str, Any],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """`run_pair` for every seed, epsilon and configuration; without epsilons, for each
    configuration's own. What is finished in `folder` is not repeated.

    Returns:
        JSON-ready: "summary", "runs" and "settings".
    """
    recipes = []
    for config in configs:
        targets = epsilons or [config.privacy.epsilon]
        privacy = [dataclasses.replace(config.privacy, epsilon=epsilon) for epsilon in targets]
        recipes += [dataclasses.replace(config, privacy=p) for p in privacy]
    pairs = [
        run_pair(config.run.name, config, seed, folder, options, report)
        for seed in range(seeds)
        for config in recipes
    ]
    settings = {
        f"{pair.recipe}, epsilon {pair.epsilon}": {s: o.settings for s, o in pair.outcomes.items()}
        for pair in pairs
    }
    return {
        "summary": summarise(pairs),
        "runs": [row for pair in pairs for row in pair.rows()],
        "settings": settings,
    }


def _private_job(config: Config, folder: Path) -> Job:
    if not config.privacy.private:
        raise ConfigError("config.privacy.epsilon must be a number: gradients are clipped here")
    return make_job(config, load_inputs(config), folder)


def _settings(job: Job, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    trainers = (OurTrainer(job), TorchTrainer(job, **options))
    return {side: t.settings() for side, t in zip(SIDES, trainers, strict=True)}
