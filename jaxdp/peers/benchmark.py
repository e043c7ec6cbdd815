# SPDX-License-Identifier: Apache-2.0
"""All combinations of model, lengths and batch, one after the other; in each, contenders step in
turn, each in a process of its own that sleeps while others step."""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp import dp
from jaxdp.backbone import Backbone
from jaxdp.settings import ConfigError
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import Inputs

from . import inputs, summary
from .contenders import CONTENDERS, USUAL
from .job import MAIN, Job
from .machine import best_products, environment
from .process import Failed, Process
from .side import ask, begin
from .summary import Record


def measure(
    models: Sequence[str],
    lengths: Sequence[str],
    batches: Sequence[float],
    names: Sequence[str],
    *,
    platform: str,
    rounds: int,
    tune: bool,
    profile: Path | None = None,
    report: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Yields what `summary` makes of each combination, JSON-ready, as soon as it is measured.

    All batches are drawn from the same reports, which are repeated where that takes more of them.
    Jobs are made here, on the CPU, without torch.

    Args:
        models, lengths, names: of `inputs.MODEL_NAMES`, `inputs.LENGTHS`, `CONTENDERS`.
        batches: expected reports of a logical batch.
        platform, rounds, tune, profile, report: see `run_rounds`.
    """
    data = {which: inputs.load(which, 1.25 * max(batches)) for which in lengths}
    num_labels = data[lengths[0]].num_labels
    best = _products(platform, {}, report)
    with tempfile.TemporaryDirectory() as folder:
        backbones = {m: inputs.backbone_of(m, num_labels, Path(folder)) for m in models}
        combinations = list(itertools.product(models, lengths, batches))
        for number, (model, which, batch) in enumerate(combinations, 1):
            report(f"{model}, {which}, batch {batch:g}: {number} of {len(combinations)}")
            place = Path(folder) / f"{model}_{which}_{batch:g}"
            jobs, records = _jobs(data[which], backbones[model], batch, which, names, place)
            run_rounds(
                records,
                jobs,
                place,
                platform=platform,
                rounds=rounds,
                tune=tune,
                profile=profile and profile / place.name,
                report=report,
            )
            best = _products(platform, best, report)
            yield {
                "model": model,
                "lengths": which,
                "max_length": inputs.LENGTHS[which],
                "batch": batch,
                "matmul_gflops": dict(best),
                "contenders": summary.summarise(records, max(best.values())),
            }


def _jobs(
    reports: Inputs, backbone: Backbone, batch: float, which: str, names: Sequence[str], place: Path
) -> tuple[dict[str, Path], dict[str, Record]]:
    """(lora.layers -> folder of the job, contender -> record, which says why there is no job)."""
    jobs, errors = {}, {}
    for layers in dict.fromkeys(CONTENDERS[name].layers for name in names):
        folder = place / layers.replace(":", "_")
        try:
            inputs.write_job(reports, backbone, batch, inputs.LENGTHS[which], layers, folder)
            jobs[layers] = folder
        except ConfigError as error:  # ALBERT's one layer has no last two
            errors[layers] = str(error)
    return jobs, {name: Record(error=errors.get(CONTENDERS[name].layers)) for name in names}


def _products(
    platform: str, before: dict[str, float], report: Callable[[str], None]
) -> dict[str, float]:
    """The best of before and now, GFLOP/s by framework."""
    now = best_products(platform)
    report("best matmul: " + ", ".join(f"{n} {rate:.0f} GFLOP/s" for n, rate in now.items()))
    return {name: max(rate, before.get(name, 0.0)) for name, rate in now.items()}


def draw(job: Job, step: int) -> np.ndarray:
    """The reports of a step: Poisson, by the sampler and seed that our side uses."""
    seed = RunSecret.create(job.config.run.research_seed).sampling_seed(MAIN)
    return dp.PoissonSampler(seed, job.sampling_probability, len(job.train)).sample(step)


def run_rounds(
    records: dict[str, Record],
    jobs: dict[str, Path],
    folder: Path,
    *,
    platform: str,
    rounds: int,
    tune: bool,
    profile: Path | None = None,
    report: Callable[[str], None],
) -> None:
    """Lets contenders take one logical step each, in turn, `rounds` times.

    In a round all step on the same Poisson draw, and who begins moves on by one. Before, each has
    taken one step to compile and, where it computes a physical batch of its user's choice, has
    tried a few sizes. Beyond a CPU all compile side by side: there are cores for it.

    Args:
        records: name in `CONTENDERS` -> where to note what it did. Who has an error does not take
            part; who fails keeps its error, and the rest goes on.
        jobs: lora.layers -> folder of the job.
        folder: for logs.
        platform: of `USUAL`.
        rounds: at least 1.
        tune: whether sizes are tried; otherwise each keeps its own default.
        profile: folder for a trace of one more step of ours.
        report: told what is done, in one line.
    """
    names = [name for name, record in records.items() if not record.error]
    if not names:
        return
    workers: dict[str, Process] = {}
    draws = [draw(Job.read(next(iter(jobs.values()))), step) for step in range(rounds + 2)]

    @contextlib.contextmanager
    def noting_failure(name: str) -> Iterator[tuple[Process, Record]]:
        try:
            yield workers[name], records[name]
        except Failed as error:
            records[name].error = str(error)
            report(f"{name}: {error}")
            workers.pop(name).shutdown()

    def start(name: str) -> None:
        # Programs are compiled, not read from a cache.
        variables = environment(platform) | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        workers[name] = Process(folder / f"{name}.log", **variables)
        contender = CONTENDERS[name]
        with noting_failure(name) as (worker, record):
            job, options = jobs[contender.layers], contender.options_on(platform)
            record.setup_seconds = worker.call(begin, contender.side, job, options, worker.began)
            record.first = worker.call(ask, "turn", draws[0])
            if tune and contender.tunes:
                sizes = USUAL[platform].at_once
                record.tried = worker.call(ask, "tune", draws[0][: 2 * max(sizes)], sizes)
            seconds = record.first["seconds"]
            report(f"{name}: ready in {record.setup_seconds:.1f} s, first step {seconds:.1f} s")

    try:
        with ThreadPoolExecutor(1 if platform == "cpu" else len(names)) as together:
            list(together.map(start, names))
        for step in range(1, rounds + 1):
            for name in rotated(names, step):
                if name in workers:
                    with noting_failure(name) as (worker, record):
                        record.steps.append(worker.call(ask, "turn", draws[step]))
            done = {name: records[name].steps[-1] for name in workers}
            rates = ", ".join(f"{n} {a['reports'] / a['seconds']:.1f}" for n, a in done.items())
            report(f"round {step} of {rounds}, reports/s: {rates}")
        if profile and "ours" in workers:
            with noting_failure("ours") as (worker, _):
                worker.call(ask, "profile", profile, draws[rounds + 1])
    finally:
        for worker in workers.values():
            worker.shutdown()


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The same order, begun `by` places later."""
    by %= len(names)
    return [*names[by:], *names[:by]]
