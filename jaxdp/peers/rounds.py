# SPDX-License-Identifier: Apache-2.0
"""Contenders taking turns: each in a process of its own that sleeps while others step."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp import dp
from jaxdp.training.randomness import RunSecret

from .contenders import CONTENDERS
from .job import MAIN, Job
from .side import command

TUNED_ON = 96
"""Reports on which physical batch sizes are tried."""


class Failed(RuntimeError):
    """A contender could not do what it was told; the message is one line."""


class Worker:
    """The process of one contender; `folder` holds its job, log.txt beside it what it prints."""

    def __init__(self, name: str, folder: Path, log: Path):
        contender = CONTENDERS[name]
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command(contender.side, folder, contender.options),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                # One machine for all: and programs are compiled, not read from a cache.
                env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"},
            )

    def ask(self, task: str | None = None, rows: Sequence[int] = (), **fields):
        """The worker's answer; `task` None waits for what it says when it is ready.

        Raises:
            Failed: it answered with an error, or ended.
        """
        try:
            if task is not None:
                message = {"task": task, "rows": list(map(int, rows))} | fields
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            status = self._process.wait()
            lines = self._log.read_text("utf-8", "replace").strip().splitlines()
            raise Failed(f"ended with status {status}: {lines[-1][:200] if lines else 'no output'}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


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
    records, workers = {name: Record() for name in names}, {}
    draws = [draw(Job.read(next(iter(jobs.values()))), step) for step in range(rounds + 2)]

    def attempt(name: str, action: Callable[[Worker, Record], None]) -> None:
        try:
            action(workers[name], records[name])
        except Failed as error:
            records[name].error = str(error)
            report(f"{name}: {error}")
            workers.pop(name).close()

    def start(worker: Worker, record: Record) -> None:
        record.setup_seconds = worker.ask()["setup_seconds"]
        record.first = worker.ask("step", draws[0])
        if tune and CONTENDERS[name].tunes:
            record.tried = worker.ask("tune", draws[0][:TUNED_ON])["tried"]
        seconds = record.first["seconds"] + record.first["compile_seconds"]
        report(f"{name}: ready in {record.setup_seconds:.1f} s, first step {seconds:.1f} s")

    def take(step: int, worker: Worker, record: Record) -> None:
        record.steps.append(worker.ask("step", draws[step]))

    def trace(worker: Worker, record: Record) -> None:
        del record
        worker.ask("profile", draws[rounds + 1], folder=str(profile))

    try:
        for name in names:
            workers[name] = Worker(name, jobs[CONTENDERS[name].layers], folder / f"{name}.log")
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
