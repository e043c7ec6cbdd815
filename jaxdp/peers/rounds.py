# SPDX-License-Identifier: Apache-2.0
"""Contenders taking turns: each in a process of its own that sleeps while others step."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp import dp
from jaxdp.training.randomness import RunSecret

from .contenders import CONTENDERS
from .job import MAIN, Job
from .process import Failed, Process
from .side import begin, profile_here, tune_here, turn

TUNED_ON = 96
"""Reports on which physical batch sizes are tried."""


@dataclasses.dataclass
class Record:
    """What one contender did."""

    setup_seconds: float = 0.0
    tried: dict[str, float] = dataclasses.field(default_factory=dict)
    first: dict[str, Any] | None = None
    """Answer to the first step, which compiles."""
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Answers, round by round."""
    error: str | None = None


def draw(job: Job, step: int) -> np.ndarray:
    """The reports of a step: Poisson, by the sampler and seed that our side uses."""
    seed = RunSecret.create(job.config.run.research_seed).sampling_seed(MAIN)
    return dp.PoissonSampler(seed, job.sampling_probability, len(job.train)).sample(step)


def run_rounds(
    names: Sequence[str],
    jobs: dict[str, Path],
    folder: Path,
    *,
    rounds: int,
    tune: bool,
    profile: Path | None = None,
    report: Callable[[str], None],
) -> dict[str, Record]:
    """Lets contenders take one logical step each, in turn, `rounds` times.

    In a round all step on the same Poisson draw, and who begins moves on by one. Before, each has
    taken one step to compile and, where it computes a physical batch of its user's choice, has
    tried a few sizes.

    Args:
        names: of `CONTENDERS`.
        jobs: lora.layers -> folder of the job.
        folder: for logs.
        rounds: at least 1.
        tune: whether sizes are tried; otherwise each keeps its own default.
        profile: folder for a trace of one more step of ours.
        report: told what is done, in one line.

    Returns:
        Name -> record. One that fails keeps its error, and the rest goes on.
    """
    records = {name: Record() for name in names}
    workers: dict[str, Process] = {}
    draws = [draw(Job.read(next(iter(jobs.values()))), step) for step in range(rounds + 2)]

    def attempt(name: str, action: Callable[[Process, Record], None]) -> None:
        try:
            action(workers[name], records[name])
        except Failed as error:
            records[name].error = str(error)
            report(f"{name}: {error}")
            workers.pop(name).close()

    def start(worker: Process, record: Record) -> None:
        contender = CONTENDERS[name]
        record.setup_seconds = worker.call(
            begin, contender.side, jobs[contender.layers], contender.options, worker.began
        )
        record.first = worker.call(turn, draws[0])
        if tune and contender.tunes:
            record.tried = worker.call(tune_here, draws[0][:TUNED_ON])
        seconds = record.first["seconds"] + record.first["compile_seconds"]
        report(f"{name}: ready in {record.setup_seconds:.1f} s, first step {seconds:.1f} s")

    def take(step: int, worker: Process, record: Record) -> None:
        record.steps.append(worker.call(turn, draws[step]))

    def trace(worker: Process, record: Record) -> None:
        del record
        worker.call(profile_here, profile, draws[rounds + 1])

    try:
        for name in names:
            # One machine for all: and programs are compiled, not read from a cache.
            environment = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
            workers[name] = Process(folder / f"{name}.log", **environment)
            attempt(name, start)
        for step in range(1, rounds + 1):
            for name in rotated(names, step):
                if name in workers:
                    attempt(name, partial(take, step))
            done = {n: r.steps[-1] for n, r in records.items() if n in workers}
            rates = ", ".join(f"{n} {a['reports'] / a['seconds']:.1f}" for n, a in done.items())
            report(f"round {step} of {rounds}, reports/s: {rates}")
        if profile and "ours" in workers:
            attempt("ours", trace)
    finally:
        for worker in workers.values():
            worker.close()
    return records


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The same order, begun `by` places later."""
    by %= len(names)
    return [*names[by:], *names[:by]]
