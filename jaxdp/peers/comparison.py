# SPDX-License-Identifier: Apache-2.0
"""The two comparisons without coins: gradients of one batch, and several steps."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from .jax_side import OurTrainer
from .job import MAIN, SIDES, Job
from .start import move_adapter
from .torch_side import TorchTrainer

GRADIENT_TOLERANCE = 1e-4
"""Of float32 against float32, relative to the largest entry of a tensor; Opacus' clip factor
C / (norm + 1e-6) alone is 3e-5 off at a norm of 0.03."""
TRAJECTORY_TOLERANCE = {"sgd": 1e-4, "adam": 1e-2}
"""Distance between the adapters over the distance moved. Adam divides a gradient by its own size:
entries that are zero but for rounding move as far as any other, either way."""


def compare(job: Job, level: str, count: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """`compare_gradients` of `count` reports at the start of the main stage, moved a little off it,
    or `compare_trajectories` of as many steps from there; with the settings of both sides.

    Args:
        job: private; its adapter may be moved.
        level: "gradients" or "trajectory".
        count: of reports or steps.
        options: of `TorchTrainer`.
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
    for way, method in (
        ("PyTorch loop", "none"),
        ("Opacus hooks", "hooks"),
        ("Opacus ghost", "ghost"),
    ):
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
    """`steps` whole steps on the reports that our sampler draws, without noise, on both sides.

    Args:
        job: its schedule is that of the whole run.
        steps: at most the run's.
        options: of `TorchTrainer`.

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
