# SPDX-License-Identifier: Apache-2.0
"""What a run's compiled programs cost on a chip that need not be here.

    jaxdp programs --config mimic_plain_eps1 --chip v5e
    jaxdp programs --config openi_eps8 --json programs.json

Compiles the main stage's step, what its frozen layers and a prediction are computed with, and
counts what the compiler made of them. No report is read and nothing runs. TPUs are compiled for
by libtpu (pip install "jaxdp-text[tpu]"). For a CUDA card XLA cannot compile without one.

A step is one program for all widths, counted with one microbatch of each and the update. Frozen
layers and predictions have a program for each width; counted is the widest.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from jaxdp import dp
from jaxdp.backbone import resolve_backbone
from jaxdp.cli import USER_ERRORS, fail
from jaxdp.config import ON_ACCELERATOR, ON_CPU, Config
from jaxdp.data.load import label_names
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import Predictor, advancing, shaped
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.presets import PUBLISHED_SIZES, find_preset
from jaxdp.models.pretrained import MODELS, as_config, read_config
from jaxdp.runtime import prepare
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import add_adapters, token_buckets
from jaxdp.training.stages import Stage
from jaxdp.training.trainer import StageTrainer

from .define import Define


class Chip(NamedTuple):
    """Topology by libtpu's name; nominal bfloat16 FLOP/s and bytes/s of one chip's memory."""

    topology: str
    flops: float
    bandwidth: float


CHIPS = {
    "cpu": None,
    "v5e": Chip("v5e:2x2", 197e12, 819e9),
    "v5p": Chip("v5p:2x2x1", 459e12, 2765e9),
    "v6e": Chip("v6e:2x2", 918e12, 1640e9),
}
DEFINE = Define()
_CONFIG = DEFINE.config("config", "Name, or Python file with get_config().", required=True)
_CHIP = DEFINE.enum("chip", "cpu", list(CHIPS), "What to compile for.")
_JSON = DEFINE.string("json", None, "File for the numbers, for programs.")

_LABELS, _REPORTS = 14, 4096
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%\S+ = .*? ([a-z][\w-]*)\(", re.M)
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "after-all"}
_FREE |= {"copy-done", "all-reduce-done", "partition-id"}


def count(compiled: jax.stages.Compiled) -> dict[str, float]:
    """What the compiler made of a program, loops counted once.

    Kernels are instructions outside of fusions that do something; cycles are the TPU compiler's
    own estimate, 0 for others.
    """
    text, cost = compiled.as_text(), compiled.cost_analysis()
    inside = set(re.findall(r"(?:calls|to_apply)=%([\w.-]+)", text))
    kernels = []
    for computation in text.split("\n\n"):
        name = re.search(r"^(?:ENTRY )?%([\w.-]+) \(", computation, re.M)
        if name and name[1] not in inside:
            kernels += [op for op in _INSTRUCTION.findall(computation) if op not in _FREE]
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "kernels": len(kernels),
        "fusions": kernels.count("fusion"),
        "to_bfloat16": len(re.findall(r"= bf16\S* convert\(", text)),
        "cycles": sum(map(int, re.findall(r'estimated_cycles":"(\d+)"', text))),
    }


def roofline(cost: dict[str, float], chip: Chip) -> float:
    """Seconds in which the chip could do it at best, if arithmetic and traffic overlap."""
    return max(cost["flops"] / chip.flops, cost["bytes"] / chip.bandwidth)


class _Blank:
    """Reports of the largest length and nothing in them, at any level; see `FrozenLayers`."""

    def __init__(self, model: ReportClassifier, reports: int, length: int):
        self._model, self._reports, self._length = model, reports, length

    def at(self, level: int) -> dict[str, Packed]:
        model, ids = self._model, jnp.zeros(self._length, jnp.int32)
        state = jax.eval_shape(lambda: model.advance(ids, self._length, 0, level))
        shape, each = state.shape[1:], self._length
        if level == model.feature_level:
            shape, each = state.shape, 1
        values = np.zeros((self._reports * each, *shape), state.dtype)
        return {"train": Packed.from_lengths(values, np.full(self._reports, each))}


def blank_model(config: Config, num_labels: int) -> ReportClassifier:
    """The model that the configuration trains, with random weights; only its config.json is read,
    and not even that of a preset of the study."""
    name = config.model.backbone
    preset = find_preset(name)
    pooling = config.model.pooling or (preset.pooling if preset else "cls")
    if name in PUBLISHED_SIZES:
        sizes = as_config(PUBLISHED_SIZES[name])
    else:
        sizes = read_config(resolve_backbone(name, revision=config.model.revision).directory)
    dtype = config.model.dtype if config.model.dtype == "bfloat16" else None
    model = MODELS[sizes.model_type](sizes, num_labels, pooling, dtype, rngs=nnx.Rngs(0))
    model.precision = config.model.dtype
    add_adapters(config, model, nnx.Rngs(0))
    if config.warm_start.phrasebook is not None:
        width, kept = sizes.hidden_size, config.model.label_dimensions
        by_label = (num_labels,) if pooling == "label-attention" else ()
        directions = None if kept is None else jnp.zeros((num_labels, width, kept))
        model.set_basis(jnp.zeros((*by_label, width)), directions)
    return model


def programs(config: Config, device: jax.Device) -> Iterator[tuple[str, int, jax.stages.Lowered]]:
    """(name, how many there are, one of them lowered for `device`)."""
    num_labels = len(label_names(config.data) or range(_LABELS))
    model, train, privacy = blank_model(config, num_labels), config.train, config.privacy
    buckets, reports = token_buckets(config), min(privacy.units or _REPORTS, _REPORTS)
    batch = train.expected_batch_size
    mechanism = None
    if privacy.private:  # how much noise makes no difference
        mechanism = dp.SubsampledGaussian(privacy.units, batch, 1, privacy.l2_clip_norm, 1.0)
    trainer = StageTrainer(
        Stage("main stage", train.trained, train, mechanism),
        model,
        frozen_layers=_Blank(model, reports, config.data.max_length),
        labels={"train": np.zeros((reports, num_labels), np.int8)},
        units=PrivacyUnits("report", np.arange(reports), np.arange(reports + 1)),
        secret=RunSecret.create(0),
        token_buckets=buckets,
        secure_noise=privacy.secure_noise,
    )
    yield f"step ({len(trainer.buckets.widths)} widths)", 1, trainer.lower(device)
    rows, width = buckets.rows[0], buckets.widths[0]
    widest = np.zeros((rows, width), np.int32), np.full(rows, width, np.int32)
    if trainer.level > 0:
        graphdef, state = nnx.split(model)
        frozen = jax.jit(advancing(graphdef, 0, trainer.level))
        yield "frozen layers", len(buckets.widths), frozen.lower(*shaped((state, *widest), device))
    graphdef, *weights = lora.split(model, train.trained)
    predictor = Predictor(graphdef, 0, buckets)
    yield "prediction", len(buckets.widths), predictor.lower(device, (*weights, 0.0), *widest)


def measure(config: Config, chip: str) -> list[dict[str, Any]]:
    """A row for each kind of program."""
    if (target := CHIPS[chip]) is None:
        device, defaults = jax.devices("cpu")[0], ON_CPU
    else:
        device = topologies.get_topology_desc(target.topology, "tpu").devices[0]
        defaults = ON_ACCELERATOR
    values = config.to_dict()
    values["model"]["dtype"] = config.model.dtype or defaults.dtype
    values["train"]["microbatch_tokens"] = (
        config.train.microbatch_tokens or defaults.microbatch_tokens
    )
    rows = []
    for name, number, lowered in programs(Config.from_dict(values), device):
        cost = count(lowered.compile())
        seconds = None if target is None else roofline(cost, target)
        rows.append({"program": name, "programs": number, **cost, "roofline_seconds": seconds})
    return rows


def main(argv) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}; settings are given as --config.section.field=value")
    prepare()
    try:
        rows = measure(Config.from_dict(_CONFIG.value.to_dict()), _CHIP.value)
    except USER_ERRORS as error:
        fail(error)
    except RuntimeError as error:
        if CHIPS[_CHIP.value] is None or "libtpu" not in str(error):
            raise
        fail('--chip: TPUs need libtpu; pip install "jaxdp-text[tpu]", and JAX_PLATFORMS=cpu')
    table = Table(title=f"{_CONFIG.value.model.backbone} on {_CHIP.value}", title_justify="left")
    units = {"flops": (1e9, "GFLOP"), "bytes": (1e6, "MB"), "cycles": (1e3, "kcycles")}
    units["roofline_seconds"] = (1e-6, "roofline, us")
    for field in rows[0]:
        table.add_column(units.get(field, (1, field))[1], justify="right")
    for row in rows:
        scaled = [
            v if isinstance(v, str | None) else v / units.get(f, (1,))[0] for f, v in row.items()
        ]
        table.add_row(*(f"{v:,.0f}" if isinstance(v, int | float) else v or "-" for v in scaled))
    Console().print(table)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(rows, indent=2))
