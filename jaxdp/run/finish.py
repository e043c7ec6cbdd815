# SPDX-License-Identifier: Apache-2.0
"""The end of a run: its statement, its release, and what it answers on the test split."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxdp import dp
from jaxdp.evaluation.predictions import TestPredictions
from jaxdp.files import write_json, write_whole
from jaxdp.models.classifier import ReportClassifier
from jaxdp.training.randomness import noise_generator, seed_policy
from jaxdp.training.setup import Inputs, arithmetic
from jaxdp.training.warm_start import public_start

from . import processes
from .begin import Run
from .release import write_release

NOT_COVERED = (
    "computed on held-out reports and not covered by the privacy guarantee; publish it only if "
    "those reports are public"
)


def finish(
    run: Run,
    inputs: Inputs,
    model: ReportClassifier,
    initialised: Sequence[str],
    probabilities: np.ndarray | None,
) -> dict[str, Any]:
    """Writes release/, then the test predictions, then metrics.json, which says that all is there.

    Args:
        initialised: parameters that were drawn at random because the checkpoint lacked them.
        probabilities: [n, num_labels] of the model for the test split; None if there is none.

    Returns:
        The statement ("privacy") and the test metrics ("metrics").
    """
    config = run.config
    statement = dp.privacy_statement(
        run.plan.mechanisms(),
        delta=config.privacy.delta,
        privacy_unit=config.privacy.unit,
        seed_policy=seed_policy(config.run.research_seed),
        noise_generator=noise_generator(config.privacy.secure_noise),
        label_origin=inputs.dataset.label_origin,
        max_reports_per_patient=config.privacy.max_reports_per_patient,
        public_start=public_start(config.warm_start),
    )
    predictions, metrics = None, {"note": "there is no test split", "test": None}
    if probabilities is not None:
        predictions = TestPredictions.of(inputs.dataset, probabilities, config.privacy.unit)
        metrics = {"note": NOT_COVERED, "test": predictions.metrics(config.data.task)}
    metrics["arithmetic"] = f"{arithmetic(config)} on {jax.default_backend()}"

    def write() -> None:
        write_release(
            run.directory.release,
            model,
            config.train.mode,
            backbone=inputs.backbone,
            label_names=inputs.dataset.label_names,
            max_length=config.data.max_length,
            initialised=initialised,
            statement=statement,
        )
        if predictions is not None:
            write_whole(run.directory.private / "test_predictions.npz", predictions.to_bytes())
        write_json(run.directory.path / "metrics.json", metrics)

    processes.first(write)
    run.monitor.finished(run.directory, statement, metrics["test"])
    return {"privacy": statement, "metrics": metrics}
