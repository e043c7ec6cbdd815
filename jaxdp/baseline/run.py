# SPDX-License-Identifier: Apache-2.0
"""A job, trained to its end by PyTorch, in a process of its own:

python -m jaxdp.baseline.run JOB_FOLDER OUTCOME_FOLDER BEGAN '{"method": "hooks"}'

BEGAN is the Unix time at which the process was started, the rest arguments of `TorchTrainer`.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from .job import Job, Outcome, peak_memory
from .trainer import TorchTrainer


def run(job: Job, began: float, **options) -> Outcome:
    """Trains the job to its end; `began` is when setting up began, in Unix time.

    Raises:
        RuntimeError: a tensor that should have been trained has not moved.
    """
    trainer = TorchTrainer(job, **options)
    start, reports = trainer.adapters(), []
    marks = [began, time.time()]
    for rows in trainer.draws():
        trainer.step(rows)
        reports.append(len(rows))
        if len(reports) == 1:
            marks.append(time.time())
    marks.append(time.time())
    setup, first, later = np.diff(marks).tolist()
    still = [n for n, value in trainer.adapters().items() if np.array_equal(value, start[n])]
    if still:
        raise RuntimeError(f"not trained: {', '.join(still[:4])}; {len(still)} tensors in all")
    return Outcome(
        setup_seconds=setup,
        first_step_seconds=first,
        later_seconds=later,
        reports=reports,
        epsilon=trainer.epsilon(),
        settings=trainer.settings(),
        probabilities=trainer.probabilities(job.test),
        peak_memory=peak_memory(),
    )


if __name__ == "__main__":
    job, outcome, began, options = sys.argv[1:]
    run(Job.read(Path(job)), float(began), **json.loads(options)).write(Path(outcome))
