# SPDX-License-Identifier: Apache-2.0
"""What a run's compiled programs cost on a chip that need not be here.

    jaxdp programs --config mimic_plain_eps1 --chip v5e
    jaxdp programs --config openi_eps8 --json programs.json

Compiles the main stage's step, what its frozen layers and a prediction are computed with, and
counts what the compiler made of them. No report is read and nothing runs. TPUs need the extra
tpu, CUDA cards the extra cuda13, neither a chip. Without a card nothing is tuned, attention is
plain, and the compiler tells no FLOPs and bytes.

A step is one program for all widths, counted with one microbatch of each and the update. Frozen
layers and predictions have a program for each width; counted is the widest. With a query stage,
frozen layers are two programs, one after the other; counted is what both do, as one.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from jaxdp import dp
from jaxdp.backbone import resolve_backbone
from jaxdp.compiled import CHIPS, count, device_of, roofline
from jaxdp.config import Config, ConfigError
from jaxdp.data.batching import any_lengths
from jaxdp.data.load import label_names
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import Predictor, shaped
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.presets import PRESETS, PUBLISHED_SIZES
from jaxdp.models.pretrained import MODELS, as_config, read_config
from jaxdp.models.readers import join, own_of
from jaxdp.training.frozen_layers import FrozenLayers, advancing
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import configure, platform_defaults, token_buckets
from jaxdp.training.stages import Stage
from jaxdp.training.trainer import StageMember, StageTrainer

from . import table
from .define import Define

DEFINE = Define()
_CONFIG = DEFINE.config()
_CHIP = DEFINE.enum("chip", "cpu", list(CHIPS), "What to compile for.")
DEFINE.json("File for the numbers, for programs.")

_LABELS, _REPORTS = 14, 4096


def _blank(model: ReportClassifier, level: int, reports: int, length: int) -> Packed:
    """Reports of that many tokens with nothing in them, at any level."""
    ids = jnp.zeros(length, jnp.int32)
    one = jax.eval_shape(lambda: model.advance(ids, length, 0, level))
    each, shape = (1, one.shape) if level == model.feature_level else (length, one.shape[1:])
    return Packed.from_lengths(
        np.zeros((reports * each, *shape), one.dtype), np.full(reports, each)
    )


def blank_model(config: Config, num_labels: int) -> ReportClassifier:
    """The model that the configuration trains, with random weights; only its config.json is read,
    and not even that of a preset of the study."""
    name, pooling = config.model.backbone, config.model.pooling
    if name in PUBLISHED_SIZES:
        sizes, pooling = as_config(PUBLISHED_SIZES[name]), pooling or PRESETS[name].pooling
    else:
        backbone = resolve_backbone(name, pooling, config.model.revision)
        sizes, pooling = read_config(backbone.directory), backbone.pooling
    dtype = config.model.dtype if config.model.dtype == "bfloat16" else None
    model = MODELS[sizes.model_type](sizes, num_labels, pooling, dtype, rngs=nnx.Rngs(0))
    configure(config, model, nnx.Rngs(0))
    if config.warm_start.phrasebook is not None:
        join(model, [own_of(model)] * config.warm_start.readers)
        shape, kept = model.classifier.kernel[...].T.shape, config.model.label_dimensions
        center = jnp.zeros(shape if pooling == "label-attention" else shape[1:])
        directions = None if kept is None else jnp.zeros((*shape, min(shape[1], kept)))
        model.set_basis(center, directions)
    return model


def programs(config: Config, device: jax.Device) -> Iterator[tuple[str, int, jax.stages.Lowered]]:
    """(name, how many there are, one of them lowered for `device`)."""
    num_labels = len(label_names(config.data) or range(_LABELS))
    model, train, privacy = blank_model(config, num_labels), config.train, config.privacy
    lengths = any_lengths(config.data.max_length * config.data.windows)
    buckets = token_buckets(config, lengths, defaults=platform_defaults(device.platform))
    reports = min(privacy.units or _REPORTS, _REPORTS)
    mechanism = None
    if privacy.private:  # how much noise makes no difference
        batch, clip_norm = train.expected_batch_size, privacy.l2_clip_norm
        mechanism = dp.SubsampledGaussian(privacy.units, batch, 1, clip_norm, 1.0)
    level = model.start_level(lora.split(model, train.trained)[1])
    blank = {"train": _blank(model, level, reports, config.data.max_length)}
    stage = Stage("main stage", train.trained, train, mechanism)
    trainer = StageTrainer(
        [StageMember(stage, model, RunSecret.create(0))],
        frozen_layers=FrozenLayers(model, blank, buckets, level=level),
        labels={"train": np.zeros((reports, num_labels), np.int8)},
        units=PrivacyUnits("report", np.arange(reports), np.arange(reports + 1)),
        token_buckets=buckets,
        secure_noise=privacy.secure_noise,
    )
    yield f"step ({len(trainer.buckets.widths)} widths)", 1, trainer.lower(device)
    width, slots, together = next(buckets.shapes)
    widest = _blank(model, 0, slots, width // together).gather(np.arange(slots), width, together)
    if level > 0:
        graphdef, state = nnx.split(model)
        frozen = jax.jit(advancing(graphdef, 0, level))
        yield "frozen layers", len(buckets.widths), frozen.lower(*shaped((state, *widest), device))
    graphdef, *weights = lora.split(model, train.trained)
    predictor = Predictor(graphdef, 0, buckets)
    yield "prediction", len(buckets.widths), predictor.lower(device, (*weights, 0.0), *widest)


def measure(config: Config, chip: str) -> list[dict[str, Any]]:
    """A row for each kind of program; ConfigError where the chip's compiler is missing."""
    try:
        device = device_of(chip)
    except RuntimeError:
        extra = "cuda13" if CHIPS[chip].platform == "cuda" else "tpu"
        raise ConfigError(f'--chip={chip} needs pip install "jaxdp-text[{extra}]"') from None
    values, defaults = config.to_dict(), platform_defaults(device.platform)
    for section, field in (("model", "dtype"), ("train", "microbatch_tokens")):
        values[section][field] = values[section][field] or getattr(defaults, field)
    rows = []
    for name, number, lowered in programs(Config.from_dict(values), device):
        row = {"program": name, "programs": number, **count(lowered.compile())}
        rows.append(row | {"roofline_seconds": roofline(row, CHIPS[chip])})
    return rows


def main() -> None:
    rows = measure(Config.from_dict(_CONFIG.value.to_dict()), _CHIP.value)
    title = f"{_CONFIG.value.model.backbone} on {_CHIP.value}"
    header = (field.replace("_", " ") for field in rows[0])
    cells = [
        [f"{v:.4g}" if isinstance(v, int | float) else v or "-" for v in row.values()]
        for row in rows
    ]
    Console().print(table(title, header, cells, left=1))
    DEFINE.write_json(rows)
