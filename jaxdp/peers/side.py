# SPDX-License-Identifier: Apache-2.0
"""What a side is, and what its process does with it.

Imports neither jax nor torch, so that each process holds only what its side needs.
"""

import dataclasses
import importlib
import time
from collections.abc import Iterator, Sequence
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


def make(name: str, job: Path, options: dict[str, Any]) -> Side:
    """The side of this module, on the job of this folder."""
    return importlib.import_module(f".{name}", __package__).make(Job.read(job), **options)


def finish(name: str, job: Path, options: dict[str, Any], began: float, outcome: Path) -> None:
    """Trains a side to its end, and writes the outcome to this folder."""
    train(make(name, job, options), began).write(outcome)


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


# In the process of a contender, which steps when it is its turn.


@dataclasses.dataclass
class _Here:
    side: Side
    slept: tuple[float, float] = (0.0, 0.0)
    """CPU seconds and the time at the end of the last turn."""

    def sleep(self) -> None:
        self.slept = (time.process_time(), time.perf_counter())


_here: _Here


def begin(name: str, job: Path, options: dict[str, Any], began: float) -> float:
    """Sets up; seconds since `began`."""
    global _here
    _here = _Here(make(name, job, options))
    _here.sleep()
    return time.time() - began


def turn(rows: np.ndarray) -> dict[str, Any]:
    """A step on these training reports: what it took, and what happened since the last turn."""
    side, (cpu, clock) = _here.side, _here.slept
    idle = (time.process_time() - cpu, time.perf_counter() - clock)
    seconds, compiling = _seconds(side, rows)
    flops, widths, lengths = side.flops(), side.widths(rows), side.job.train.lengths[rows]
    answer = {
        "seconds": seconds,
        "compile_seconds": compiling,
        "peak_memory": peak_memory(),
        "idle_cpu_seconds": idle[0],
        "idle_seconds": idle[1],
        "settings": side.settings(),
        "reports": len(rows),
        "tokens": int(np.sum(lengths)),
        "positions": int(widths.sum()),
        "flops": float(np.sum(flops.step(widths))),
        "useful_flops": float(np.sum(flops.step(lengths))),
    }
    _here.sleep()
    return answer


def tune_here(rows: np.ndarray) -> dict[str, float]:
    tried = tune(_here.side, rows)
    _here.sleep()
    return tried


def profile_here(folder: Path, rows: np.ndarray) -> None:
    _here.side.profile(folder, rows)


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
