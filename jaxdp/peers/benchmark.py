# SPDX-License-Identifier: Apache-2.0
"""All combinations of model, lengths and batch, one after the other; in each, contenders step in
turn, each in a process of its own that sleeps while others step."""

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp import dp
from jaxdp.settings import ConfigError
from jaxdp.training.randomness import RunSecret

from . import summary
from .contenders import CONTENDERS, USUAL
from .inputs import backbone_of, load, plain_job
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
    rounds: "Rounds",
) -> Iterator[dict[str, Any]]:
    """Yields what `summary` makes of each combination, JSON-ready, as soon as it is measured.

    All batches are drawn from the same reports. Jobs are made here, on the CPU, without torch.

    Args:
        models, lengths, names: of `inputs.MODEL_NAMES`, `inputs.LENGTHS`, `CONTENDERS`.
        batches: expected reports of a logical batch.
    """
    data = {which: load(which, 1.25 * max(batches)) for which in lengths}
    num_labels = data[lengths[0]][0].num_labels
    best = _products(rounds, {})
    with tempfile.TemporaryDirectory() as folder:
        backbones = {m: backbone_of(m, num_labels, Path(folder)) for m in models}
        combinations = list(itertools.product(models, lengths, batches))
        for number, (model, which, batch) in enumerate(combinations, 1):
            rounds.report(f"{model}, {which}, batch {batch:g}: {number} of {len(combinations)}")
            inputs, *reports = data[which]
            inputs = dataclasses.replace(inputs, backbone=backbones[model])
            place = Path(folder) / f"{model}_{which}_{batch:g}"
            records = _records(names, partial(plain_job, inputs, *reports, batch=batch), place)
            rounds.run(records, place)
            best = _products(rounds, best)
            yield {
                "model": model,
                "lengths": which,
                "max_length": inputs.max_length,
                "batch": batch,
                "matmul_gflops": dict(best),
                "contenders": summary.summarise(records, max(best.values())),
            }


def _records(names: Sequence[str], make: Callable[..., Job], place: Path) -> dict[str, Record]:
    """Contender -> its record, with a job below `place`, or with why there is none."""
    made = {}
    for layers in dict.fromkeys(CONTENDERS[name].layers for name in names):
        try:
            folder = place / layers.replace(":", "_")
            made[layers] = {"job": make(layers=layers, folder=folder)}
        except ConfigError as error:  # ALBERT's one layer has no last two
            made[layers] = {"error": str(error)}
    return {name: Record(**made[CONTENDERS[name].layers]) for name in names}


def _products(rounds: "Rounds", before: dict[str, float]) -> dict[str, float]:
    """The best of before and now, GFLOP/s by framework."""
    now = best_products(rounds.platform)
    rates = ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in now.items())
    rounds.report(f"best matmul: {rates}")
    return {name: max(rate, before.get(name, 0.0)) for name, rate in now.items()}


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Contenders take one logical step each, in turn, `count` times.

    In a round all step on the same Poisson draw, and who begins moves on by one. Before, each has
    taken one step to compile and, where it computes a physical batch of its user's choice, has
    tried a few sizes. Beyond a CPU all compile side by side: there are cores for it.

    Attributes:
        platform: of `USUAL`.
        count: at least 1.
        tune: whether sizes are tried; otherwise each keeps its own default.
        report: told what is done, in one line.
        profile: folder for traces of one more step of ours.
    """

    platform: str
    count: int
    tune: bool
    report: Callable[[str], None]
    profile: Path | None = None

    def run(self, records: dict[str, Record], folder: Path) -> None:
        """Notes in `records`, by name in `CONTENDERS`, what each does. Who has an error does not
        take part; who fails keeps its error, and the rest goes on. Logs go to `folder`."""
        names = [name for name, record in records.items() if not record.error]
        if not names:
            return
        job = records[names[0]].job  # the others' differ in lora.layers alone
        draws = [draw(job, step) for step in range(self.count + 2)]
        workers: dict[str, Process] = {}

        @contextlib.contextmanager
        def noting_failure(name: str) -> Iterator[tuple[Process, Record]]:
            try:
                yield workers[name], records[name]
            except Failed as error:
                records[name].error = str(error)
                self.report(f"{name}: {error}")
                workers.pop(name).shutdown()

        def start(name: str) -> None:
            # Programs are compiled, not read from a cache.
            variables = environment(self.platform) | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
            workers[name] = Process(folder / f"{name}.log", **variables)
            who, sizes = CONTENDERS[name], USUAL[self.platform].at_once
            with noting_failure(name) as (worker, record):
                options = who.options_on(self.platform)
                setup = worker.call(begin, who.side, record.job, options, worker.began)
                record.setup_seconds = setup
                record.first = worker.call(ask, "turn", draws[0])
                if self.tune and who.tunes:
                    record.tried = worker.call(ask, "tune", draws[0][: 2 * max(sizes)], sizes)
                first = record.first["seconds"]
                self.report(f"{name}: ready in {setup:.1f} s, first step {first:.1f} s")

        try:
            with ThreadPoolExecutor(1 if self.platform == "cpu" else len(names)) as together:
                list(together.map(start, names))
            for step in range(1, self.count + 1):
                for name in np.roll(names, -step):
                    if name in workers:
                        with noting_failure(name) as (worker, record):
                            record.steps.append(worker.call(ask, "turn", draws[step]))
                rates = {name: records[name].per_second("reports")[-1] for name in workers}
                said = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
                self.report(f"round {step} of {self.count}, reports/s: {said}")
            if self.profile and "ours" in workers:
                with noting_failure("ours") as (worker, _):
                    worker.call(ask, "profile", self.profile / folder.name, draws[-1])
        finally:
            for worker in workers.values():
                worker.shutdown()


def draw(job: Job, step: int) -> np.ndarray:
    """The reports of a step: Poisson, by the sampler and seed that our side uses."""
    seed = RunSecret.create(job.seed).sampling_seed(MAIN)
    return dp.PoissonSampler(seed, job.sampling_probability(), len(job.train)).sample(step)
