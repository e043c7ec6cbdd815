# SPDX-License-Identifier: Apache-2.0
"""All combinations of model, lengths and batch, one after the other."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxdp.backbone import Backbone
from jaxdp.settings import ConfigError
from jaxdp.training.setup import Inputs

from . import inputs, matmul, rounds, summary
from .contenders import CONTENDERS


def measure(
    models: Sequence[str],
    lengths: Sequence[str],
    batches: Sequence[float],
    names: Sequence[str],
    *,
    count: int,
    tune: bool,
    profile: Path | None = None,
    report: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Yields what `summary` makes of each combination, JSON-ready, as soon as it is measured.

    All batches are drawn from the same reports, which are repeated where that takes more of them.

    Args:
        models, lengths, names: of `inputs.MODEL_NAMES`, `inputs.LENGTHS`, `CONTENDERS`.
        batches: expected reports of a logical batch.
        count, tune: see `rounds.run_rounds`.
        profile: folder for traces.
        report: told what is done, in one line.
    """
    loaded = inputs.load()
    loaded = inputs.repeated(loaded, -(-int(1.25 * max(batches)) // loaded.units.num_units))
    data = {which: inputs.with_lengths(loaded, which) for which in lengths}
    best = _matmul({}, report)
    with tempfile.TemporaryDirectory() as folder:
        backbones = {m: inputs.backbone_of(m, loaded.num_labels, Path(folder)) for m in models}
        combinations = list(itertools.product(models, lengths, batches))
        for number, (model, which, batch) in enumerate(combinations, 1):
            report(f"{model}, {which}, batch {batch:g}: {number} of {len(combinations)}")
            place = Path(folder) / f"{model}_{which}_{batch:g}"
            jobs, refused = _jobs(data[which], backbones[model], batch, which, names, place)
            records = {n: rounds.Record(error=e) for n, e in refused.items()}
            if taking_part := [name for name in names if name not in refused]:
                records |= rounds.run_rounds(
                    taking_part,
                    jobs,
                    place,
                    rounds=count,
                    tune=tune,
                    profile=profile and profile / place.name,
                    report=report,
                )
            records = {name: records[name] for name in names}
            best = _matmul(best, report)
            yield {
                "model": model,
                "lengths": which,
                "max_length": inputs.LENGTHS[which],
                "batch": batch,
                "matmul_gflops": dict(best),
                "contenders": summary.summarise(records, max(best.values())),
                "goals": summary.goals(model, which, records, max(best.values())),
            }


def _jobs(
    reports: Inputs, backbone: Backbone, batch: float, which: str, names: Sequence[str], place: Path
) -> tuple[dict[str, Path], dict[str, str]]:
    """(lora.layers -> folder of the job, contender -> why there can be none)."""
    jobs, refused = {}, {}
    for layers in dict.fromkeys(CONTENDERS[name].layers for name in names):
        folder = place / layers.replace(":", "_")
        try:
            inputs.write_job(reports, backbone, batch, inputs.LENGTHS[which], layers, folder)
            jobs[layers] = folder
        except ConfigError as error:  # ALBERT's one layer has no last two
            refused |= {n: str(error) for n in names if CONTENDERS[n].layers == layers}
    return jobs, refused


def _matmul(before: dict[str, float], report: Callable[[str], None]) -> dict[str, float]:
    """The best of before and now, GFLOP/s by framework."""
    now = matmul.measure()
    report("best matmul: " + ", ".join(f"{n} {rate:.0f} GFLOP/s" for n, rate in now.items()))
    return {name: max(rate, before.get(name, 0.0)) for name, rate in now.items()}
