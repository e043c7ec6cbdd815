# SPDX-License-Identifier: Apache-2.0
"""What a side is, and the process in which it works on a job:

python -m jaxdp.peers.SIDE JOB_FOLDER BEGAN OPTIONS [OUTCOME_FOLDER]

BEGAN is the Unix time at which the process was started, OPTIONS are JSON. With an outcome's folder
the job is trained to its end; without one the process steps when it is told to, and sleeps
otherwise. Messages are then lines of JSON, on stdin and on what was stdout; whatever else prints
goes to stderr. Imports neither jax nor torch, so that each process holds only what its side needs.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .flops import StepFlops
from .job import Job, Outcome, peak_memory

PHYSICAL = (16, 32, 64)
"""Reports computed at once that `tune` tries."""


class Side(Protocol):
    """One way to train the main stage of a job, ready to step. Those that only step in a benchmark
    have no `draws`, `adapters`, `epsilon` and `probabilities`."""

    def draws(self) -> Iterator[Sequence[int]]:
        """The training reports of each step."""

    def step(self, rows: Sequence[int]) -> float | None:
        """One logical step on these training reports, to its end; seconds spent compiling in it
        that the next step of the same shape will not take."""

    def adapters(self) -> dict[str, np.ndarray]:
        """Copies of the trained tensors by their names in an adapter file; the head is the centred
        one."""

    def epsilon(self) -> dict[str, float]:
        """Accountant -> what the steps have cost, stages before them included."""

    def probabilities(self) -> np.ndarray:
        """Of the job's test reports: [n, num_labels]."""

    def settings(self) -> dict[str, Any]:
        """What is run, JSON-ready, read back from the objects that run it."""

    def widths(self, rows: np.ndarray) -> np.ndarray:
        """Positions of every report slot that a step on `rows`, just taken, has computed, padding
        included: [slots]."""

    def flops(self) -> StepFlops:
        """Of a report."""


def command(side: str, job: Path, options: dict[str, Any], *outcome: Path) -> list[str]:
    """That starts a side's process, now."""
    arguments = [job, repr(time.time()), json.dumps(options), *outcome]
    return [sys.executable, "-m", f"{__package__}.{side}", *map(str, arguments)]


def work(make: Callable[..., Side]) -> None:
    """What a side's process does; `make(job, **options)` makes it."""
    folder, began, options, *outcome = sys.argv[1:]
    if outcome:
        job = Job.read(Path(folder))
        train(make(job, **json.loads(options)), float(began)).write(Path(*outcome))
    else:
        _serve(lambda: make(Job.read(Path(folder)), **json.loads(options)), float(began))


def train(side: Side, began: float) -> Outcome:
    """Trains to the end; `began` is when setting up began, in Unix time.

    Raises:
        RuntimeError: a tensor that should have been trained has not moved.
    """
    start, reports = side.adapters(), []
    marks = [began, time.time()]
    for rows in side.draws():
        side.step(rows)
        reports.append(len(rows))
        if len(reports) == 1:
            marks.append(time.time())
    marks.append(time.time())
    setup, first, later = np.diff(marks).tolist()
    still = [n for n, value in side.adapters().items() if np.array_equal(value, start[n])]
    if still:
        raise RuntimeError(f"not trained: {', '.join(still[:4])}; {len(still)} tensors in all")
    return Outcome(
        setup_seconds=setup,
        first_step_seconds=first,
        later_seconds=later,
        reports=reports,
        epsilon=side.epsilon(),
        settings=side.settings(),
        probabilities=side.probabilities(),
        peak_memory=peak_memory(),
    )


def _serve(make: Callable[[], Side], began: float) -> None:
    """Steps as it is told, until stdin ends or something fails, which is answered in one line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values) -> None:
        answers.write(json.dumps(values) + "\n")

    try:
        side = make()
        answer(setup_seconds=time.time() - began)
        slept = (time.process_time(), time.perf_counter())
        for line in sys.stdin:
            busy, waited = time.process_time() - slept[0], time.perf_counter() - slept[1]
            message = json.loads(line)
            rows = np.asarray(message["rows"], np.int64)
            if message["task"] == "tune":
                answer(tried=tune(side, rows))
            elif message["task"] == "profile":
                side.profile(message["folder"], rows)
                answer()
            else:
                idle = {"idle_cpu_seconds": busy, "idle_seconds": waited}
                answer(**_timed_step(side, rows), **idle)
            slept = (time.process_time(), time.perf_counter())
    except Exception as error:  # whatever it is, it is this side's result
        answer(error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
        raise


def tune(side: Side, rows: np.ndarray) -> dict[str, float]:
    """Sets `side.physical_batch` to the fastest of `PHYSICAL` on these rows; seconds of each, by
    size, compiling left out."""
    seconds = {}
    for size in PHYSICAL:
        side.physical_batch = size
        seconds[size], _ = _seconds(side, rows)
    side.physical_batch = min(seconds, key=seconds.get)
    return {str(size): value for size, value in seconds.items()}


def _seconds(side: Side, rows: np.ndarray) -> tuple[float, float]:
    """(seconds of a step, those of compiling before it)."""
    began = time.perf_counter()
    compiling = side.step(rows) or 0.0
    return time.perf_counter() - began - compiling, compiling


def _timed_step(side: Side, rows: np.ndarray) -> dict[str, Any]:
    seconds, compiling = _seconds(side, rows)
    flops, widths, lengths = side.flops(), side.widths(rows), side.job.train.lengths[rows]
    return {
        "seconds": seconds,
        "compile_seconds": compiling,
        "peak_memory": peak_memory(),
        "settings": side.settings(),
        "reports": len(rows),
        "tokens": int(np.sum(lengths)),
        "positions": int(widths.sum()),
        "flops": float(np.sum(flops.step(widths))),
        "useful_flops": float(np.sum(flops.step(lengths))),
    }
