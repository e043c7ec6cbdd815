# SPDX-License-Identifier: Apache-2.0
"""What a side is, and what its process does with it.

Imports neither jax nor torch, so that each process holds only what its side needs.
"""

import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp.memory import peak_memory

from .flops import step_flops
from .job import Job


class Side:
    """One way to train the main stage of a job, ready to step. Each has

    prepare()        takes all cores; static, called before anything is computed
    step(rows)       one logical step on these training reports, to its end
    settings()       what is run, JSON-ready, read back from the objects that run it
    widths(rows)     positions of every row that a step on `rows`, just taken, has computed, padding
                     included: of each report's, or of those that reports share
    savings()        what `step_flops` has to know beyond the job
    device_memory()  most bytes held on the device so far; 0 on a CPU

    and those that train whole runs also

    draws()          the training reports of each step
    adapters()       copies of the trained tensors by their names in an adapter file; the head is
                     the centred one
    epsilon()        accountant -> what the steps have cost, stages before them included
    probabilities()  of the job's test reports: [n, num_labels]
    """

    job: Job
    physical_batch: int
    """Most reports computed at once, for sides whose user has to choose; may be changed between
    steps."""
    slept = np.zeros(2)
    """`_clocks` when its process was last told to do something, at the end of that."""

    def train(self) -> tuple[dict[str, Any], np.ndarray]:
        """Trains to the end: what it took and was, JSON-ready, and the probabilities.

        Raises:
            RuntimeError: a tensor that should have been trained has not moved.
        """
        start, seconds, reports = self.adapters(), [], []
        for rows in self.draws():
            seconds.append(self._seconds(rows))
            reports.append(len(rows))
        still = [n for n, value in self.adapters().items() if np.array_equal(value, start[n])]
        if still:
            raise RuntimeError(f"not trained: {', '.join(still[:4])}; {len(still)} tensors in all")
        probabilities = self.probabilities()
        return {
            "first_step_seconds": seconds[0],
            "later_seconds": sum(seconds[1:]),
            "reports": reports,
            "peak_memory": peak_memory(),
            "epsilon": self.epsilon(),
            "settings": self.settings(),
        }, probabilities

    def turn(self, rows: np.ndarray) -> dict[str, Any]:
        """A step on these training reports: what it took, and what happened since the last turn."""
        idle_cpu, idle = _clocks() - self.slept
        seconds = self._seconds(rows)
        widths, lengths = self.widths(rows), self.job.train.lengths[rows]
        return {
            "seconds": seconds,
            "peak_memory": peak_memory(),
            "device_memory": self.device_memory(),
            "idle_cpu_seconds": idle_cpu,
            "idle_seconds": idle,
            "settings": self.settings(),
            "reports": len(rows),
            "tokens": int(np.sum(lengths)),
            "positions": int(widths.sum()),
            "flops": self._flops(widths),
            "useful_flops": self._flops(lengths),
        }

    def tune(self, rows: np.ndarray, sizes: Sequence[int]) -> dict[str, float]:
        """Sets `physical_batch` to the fastest of `sizes` on these rows; seconds of each, by size,
        without those of compiling."""
        seconds = {}
        for size in sizes:
            self.physical_batch = size
            self.step(rows[:size])  # compiles
            seconds[size] = self._seconds(rows)
        self.physical_batch = min(seconds, key=seconds.get)
        return {str(size): value for size, value in seconds.items()}

    def _seconds(self, rows: np.ndarray) -> float:
        began = time.perf_counter()
        self.step(rows)
        return time.perf_counter() - began

    def _flops(self, positions: np.ndarray) -> float:
        """Of a step on reports with these numbers of positions."""
        job, lora = self.job, self.job.lora
        encoder = json.loads((Path(job.backbone) / "config.json").read_text("utf-8"))
        each = step_flops(
            positions,
            encoder,
            labels=len(job.label_names),
            rank=lora.rank,
            adapted=len(lora.targets or ("query", "value")),
            first_layer=lora.first_layer(encoder["num_hidden_layers"]),
            pooler=job.pooling == "cls",
            **self.savings(),
        )
        return float(np.sum(each))


# Called in a process of its own.

_side: Side


def begin(name: str, job: Job, options: dict[str, Any], began: float) -> float:
    """Sets up a side, named as "module.Class"; seconds since `began`."""
    global _side
    module, _, kind = name.partition(".")
    side = getattr(importlib.import_module(f".{module}", __package__), kind)
    side.prepare()
    _side = side(job, **options)
    _side.slept = _clocks()
    return time.time() - began


def ask(method: str, *arguments: Any) -> Any:
    """What this method of the side returns."""
    answer = getattr(_side, method)(*arguments)
    _side.slept = _clocks()
    return answer


def _clocks() -> np.ndarray:
    """CPU seconds of this process, and the time."""
    return np.array([time.process_time(), time.perf_counter()])
