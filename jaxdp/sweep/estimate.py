# SPDX-License-Identifier: Apache-2.0
"""How long members will take: as long as others like them did, or a rough count of arithmetic."""

import re
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdp.config import Config
from jaxdp.models.presets import find_preset
from jaxdp.models.pretrained import read_encoder_config

from .accounting import SweepPlan
from .history import read_history, seconds

_SIZES = {"base": (12, 768), "clinical": (12, 768), "minilm-l6": (6, 384)}
"""Layers and width, by part of a preset's name."""
_FULL = 0.5
"""Mean report length over data.max_length, a guess."""
_EFFICIENCY = 0.6
"""Share of a large matrix product's speed that training reaches."""


def estimate_seconds(plan: SweepPlan) -> dict[str, float | None]:
    """Seconds for each member alone, good to a factor of about 3; None where the backbone's size is
    not known offline.

    Finished members of the same group tell better than arithmetic.
    """
    speed = _speed()
    result: dict[str, float | None] = {}
    for names in plan.groups:
        done = [read_history(plan.members[n].path) for n in names]
        times = [seconds(h) for h in done if any(e["event"] == "finished" for e in h)]
        for name in names:
            flops = _flops(plan.members[name].config)
            measured = float(np.mean(times)) if times else None
            result[name] = measured or (None if flops is None else 20 + flops / speed)
    return {name: result[name] for name in plan.members}


def _speed() -> float:
    """FLOP/s of a matrix product on the host."""
    a = np.ones((1024, 1024), np.float32)
    best = 0.0
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        best = max(best, 2 * 1024**3 / (time.perf_counter() - began))
    return _EFFICIENCY * best


def _flops(config: Config) -> float | None:
    """Multiplications and additions in dense layers: 24 H^2 per token and layer forwards, as many
    again for what goes backwards past frozen weights."""
    size = _size(config.model.backbone)
    if size is None:
        return None
    layers, hidden = size
    token_layer = 24 * hidden**2
    length = _FULL * config.data.max_length
    trained = 0
    if config.train.mode != "head":
        first = config.lora.first_layer(layers) if config.train.mode.startswith("lora") else 0
        trained = layers - first
    units = config.privacy.units or config.train.expected_batch_size * config.train.steps
    once = units * length * token_layer * layers  # features, and frozen layers' outputs
    step = config.train.expected_batch_size * length * token_layer * 2 * trained
    return once + step * config.train.steps


def _size(backbone: str) -> tuple[int, int] | None:
    """(layers, width) of a backbone, without fetching anything."""
    directory = Path(backbone).expanduser()
    if directory.is_dir():
        found = read_encoder_config(directory)
        return found.num_hidden_layers, found.hidden_size
    preset = find_preset(backbone)
    match = re.search(r"L-(\d+)_H-(\d+)", preset.hub_id if preset else backbone)
    if match:
        return int(match[1]), int(match[2])
    names: Mapping[str, tuple[int, int]] = _SIZES
    return next((size for part, size in names.items() if part in backbone), None)
