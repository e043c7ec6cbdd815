# SPDX-License-Identifier: Apache-2.0
"""The end of a run: its statement, its release, and what it answers on the test split."""

from typing import Any

import jax
import numpy as np

from jaxdp import dp
from jaxdp.evaluation.predictions import TestPredictions
from jaxdp.files import write_json, write_whole
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.pretrained import LoadReport

from . import processes
from .course import Course
from .randomness import noise_generator, seed_policy
from .release import write_release
from .run_directory import RunDirectory
from .setup import Inputs, arithmetic
from .warm_start import public_start

NOT_COVERED = (
    "computed on held-out reports and not covered by the privacy guarantee; publish it only if "
    "those reports are public"
)


def finish(
    course: Course,
    inputs: Inputs,
    model: ReportClassifier,
    weights: LoadReport,
    probabilities: np.ndarray | None,
) -> dict[str, Any]:
    """Writes release/, then the test predictions, then metrics.json, which says that all is there.

    Args:
        course: of the run that is done.
        inputs: that it read.
        model: trained.
        weights: how it was loaded.
        probabilities: [n, num_labels] of the model for the test split; None if there is none.

    Returns:
        The statement ("privacy") and the test metrics ("metrics").
    """
    config = course.config
    statement = dp.privacy_statement(
        course.plan.mechanisms(),
        delta=config.privacy.delta,
        privacy_unit=config.privacy.unit,
        seed_policy=seed_policy(config.run.research_seed),
        noise_generator=noise_generator(config.privacy.secure_noise),
        label_origin=inputs.dataset.label_origin,
        max_reports_per_patient=config.privacy.max_reports_per_patient,
        public_start=public_start(config),
    )
    processes.first(
        lambda: write_release(
            course.run.release,
            model,
            config.train.mode,
            backbone=inputs.backbone,
            label_names=inputs.dataset.label_names,
            max_length=config.data.max_length,
            initialised=weights.initialised,
            statement=statement,
        )
    )
    predictions, metrics = None, {"note": "there is no test split", "test": None}
    if probabilities is not None:
        predictions = TestPredictions.of(inputs.dataset, probabilities, config.privacy.unit)
        metrics = {"note": NOT_COVERED, "test": predictions.metrics()}
    metrics["arithmetic"] = f"{arithmetic(config)} on {jax.default_backend()}"
    processes.first(lambda: _write_results(course.run, predictions, metrics))
    course.monitor.finished(course.run, statement, metrics["test"])
    return {"privacy": statement, "metrics": metrics}


def _write_results(run: RunDirectory, predictions: TestPredictions | None, metrics: dict) -> None:
    if predictions is not None:
        write_whole(run.private / "test_predictions.npz", predictions.to_bytes())
    write_json(run.path / "metrics.json", metrics)
