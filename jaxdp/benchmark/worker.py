# SPDX-License-Identifier: Apache-2.0
"""The process of one contender: it steps when it is told to, and sleeps otherwise.

Messages are lines of JSON, on stdin and on what was stdout; whatever else prints goes to stderr.
Imports neither jax nor torch, so that each process holds only what its contender needs.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxdp.baseline.job import Job, peak_memory

from .flops import StepFlops

PHYSICAL = (16, 32, 64)
"""Reports computed at once that `tune` tries."""


class Side(Protocol):
    """What a contender does."""

    def step(self, step: int, rows: np.ndarray) -> float:
        """One logical step on these training reports, to its end; seconds spent compiling in it
        that the next step of the same shape will not take."""

    def widths(self, rows: np.ndarray) -> np.ndarray:
        """Positions of every report slot that such a step computes, padding included: [slots]."""

    def flops(self) -> StepFlops:
        """Of a report."""

    def settings(self) -> dict[str, Any]:
        """What is run, JSON-ready."""


def serve(make: Callable[..., Side]) -> None:
    """Runs `make(job, **options)` for the arguments JOB_FOLDER BEGAN OPTIONS and steps as it is
    told, until stdin ends or something fails, which is answered in one line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    folder, began, options = sys.argv[1:]

    def answer(**values) -> None:
        answers.write(json.dumps(values) + "\n")

    try:
        job = Job.read(Path(folder))
        side = make(job, **json.loads(options))
        answer(setup_seconds=time.time() - float(began))
        slept, flops = (time.process_time(), time.perf_counter()), None
        for line in sys.stdin:
            busy, waited = time.process_time() - slept[0], time.perf_counter() - slept[1]
            message = json.loads(line)
            rows = np.asarray(message["rows"], np.int64)
            if message["task"] == "tune":
                answer(tried=tune(side, message["step"], rows))
            elif message["task"] == "profile":
                side.profile(message["folder"], message["step"], rows)
                answer()
            else:
                began_step = time.perf_counter()
                compiling = side.step(message["step"], rows)
                seconds = time.perf_counter() - began_step - compiling
                flops = flops or side.flops()
                counts = _counts(side, flops, job.train.lengths[rows], rows)
                answer(
                    seconds=seconds,
                    compile_seconds=compiling,
                    peak_memory=peak_memory(),
                    idle_cpu_seconds=busy,
                    idle_seconds=waited,
                    settings=side.settings(),
                    **counts,
                )
            slept = (time.process_time(), time.perf_counter())
    except Exception as error:  # whatever it is, it is this contender's result
        answer(error=one_line(error))
        raise


def one_line(error: Exception) -> str:
    """Type and beginning of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def tune(side: Side, step: int, rows: np.ndarray) -> dict[str, float]:
    """Sets `side.physical_batch` to the fastest of `PHYSICAL` on these rows; seconds of each, by
    size, compiling left out."""
    seconds = {}
    for size in PHYSICAL:
        side.physical_batch = size
        began = time.perf_counter()
        compiling = side.step(step, rows)
        seconds[size] = time.perf_counter() - began - compiling
    side.physical_batch = min(seconds, key=seconds.get)
    return {str(size): value for size, value in seconds.items()}


def _counts(
    side: Side, flops: StepFlops, lengths: np.ndarray, rows: np.ndarray
) -> dict[str, float]:
    widths = side.widths(rows)
    return {
        "reports": len(rows),
        "tokens": int(np.sum(lengths)),
        "positions": int(widths.sum()),
        "flops": float(np.sum(flops.step(widths))),
        "useful_flops": float(np.sum(flops.step(lengths))),
    }
