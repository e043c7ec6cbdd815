# SPDX-License-Identifier: Apache-2.0
"""How long members will take: as long as others like them did, or a rough count of arithmetic."""

import functools
import timeit

import numpy as np

from jaxdp.backbone import backbone_size
from jaxdp.config import Config

from .accounting import SweepPlan
from .history import read_history, seconds
from .members import programs

_FULL = 0.5
"""Mean report length over data.max_length, a guess."""
_EFFICIENCY = 0.6
"""Share of a large matrix product's speed that training reaches."""
_START = 20.0
"""Seconds until a run begins to compute."""


def estimate_seconds(plan: SweepPlan) -> tuple[dict[str, float | None], float]:
    """Seconds for each member alone, good to a factor of about 3, None where the backbone's size is
    not known offline; and for all the known ones, where members of one program share what is
    computed once.

    Finished members of the same group tell better than arithmetic.
    """
    alone, total = {}, 0.0
    for names in plan.groups:
        members = [plan.members[name] for name in names]
        done = [read_history(member.path) for member in members]
        times = [seconds(h) for h in done if any(e["event"] == "finished" for e in h)]
        measured = (0.0, float(np.mean(times))) if times else None
        for program in programs(members, plan.sweep.share_sampling):
            for position, member in enumerate(program):
                cost = measured or run_cost(member.config)
                alone[member.name] = cost and sum(cost)
                if cost:
                    total += cost[1] if position else sum(cost)
    return {name: alone[name] for name in plan.members}, total


@functools.cache
def _speed() -> float:
    """FLOP/s of training on the host, from its best matrix product."""
    a = np.ones((1024, 1024), np.float32)
    return _EFFICIENCY * 2 * 1024**3 / min(timeit.repeat(lambda: a @ a, number=1, repeat=10))


def run_cost(config: Config) -> tuple[float, float] | None:
    """Seconds of what is done once for all members of a program, and of a member's steps, as
    `estimate_seconds`; None where the size is not known.

    Multiplications and additions in dense layers: 24 H^2 per token and layer forwards, as many
    again for what goes backwards past frozen weights.
    """
    size = backbone_size(config.model.backbone)
    if size is None:
        return None
    layers, hidden = size
    layer = 24 * hidden**2 * _FULL * config.data.max_length / _speed()  # seconds for a report
    units = config.privacy.units or config.train.expected_batch_size * config.train.steps
    start, mode = config.warm_start, config.train.mode
    # Features, and frozen layers' outputs; those of the last layer once more after a query
    # stage, if what it reads was kept.
    read = units + units / layers * bool(config.train.query_share)
    once = _START + layer * layers * read
    if start.trains_adapters:
        adapted = layers - config.lora.first_layer(layers)
        seen = start.readers * start.steps * start.batch_size
        once += layer * (start.readers - 1) * adapted * read
        once += layer * (layers * start.reports + 2 * adapted * seen)
    trained = 0
    if mode != "head":
        trained = layers - (config.lora.first_layer(layers) if mode.startswith("lora") else 0)
    return once, layer * 2 * trained * config.train.expected_batch_size * config.train.steps
