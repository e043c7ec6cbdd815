# SPDX-License-Identifier: Apache-2.0
"""What the benchmark trains: backbones at published sizes, on reports as long as real ones."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxdp.backbone import Backbone, resolve_backbone
from jaxdp.config import Config
from jaxdp.models.merged import save_checkpoint
from jaxdp.models.presets import PRESETS, PUBLISHED_SIZES
from jaxdp.models.pretrained import MODELS, as_config, read_config
from jaxdp.training.setup import Inputs, load_inputs

from .job import Job, Reports
from .start import make_job, reports_of

MODEL_NAMES = ("minilm-l6", *PUBLISHED_SIZES)
LENGTHS = {"openi": 128, "ct": 512}
"""Name -> data.max_length."""
CT_MEDIAN, CT_SIGMA = 300, 0.5


def load(lengths: str, least: float) -> tuple[Inputs, Reports, Reports]:
    """Open-I in MiniLM's tokens (those of BERT, uncased): all that was read; training reports,
    `repeated`; and test reports. Both as they are ("openi"), or `as_long_as_ct`."""
    settings = {"data": {"max_length": LENGTHS[lengths]}, "privacy": {"epsilon": None}}
    inputs = load_inputs(Config.from_dict(settings))
    train, test = repeated(reports_of(inputs, "train"), least), reports_of(inputs, "test")
    if lengths == "ct":
        train, test = as_long_as_ct(train), as_long_as_ct(test)
    return inputs, train, test


def plain_job(
    inputs: Inputs, train: Reports, test: Reports, *, batch: float, layers: str, folder: Path
) -> Job:
    """The main stage alone: LoRA of rank 8 on query and value, and the head; see `make_job`.

    Backbone, labels and data.max_length are those of `inputs`. Token ids beyond the backbone's
    vocabulary (ALBERT's is smaller) wrap around: only their number matters here.
    """
    backbone = inputs.backbone
    settings = {
        "data": {"max_length": inputs.max_length},
        "model": {"backbone": str(backbone.directory), "pooling": backbone.pooling},
        "lora": {"layers": layers, "targets": ("query", "value")},
        "train": {"expected_batch_size": float(batch)},
        "privacy": {"units": len(train)},
        "run": {"research_seed": 0},
    }
    vocabulary = read_config(backbone.directory).vocab_size
    train, test = (dataclasses.replace(x, ids=x.ids % vocabulary) for x in (train, test))
    job = make_job(Config.from_dict(settings), inputs, folder)
    return dataclasses.replace(job, train=train, test=test)


def repeated(reports: Reports, least: float) -> Reports:
    """The reports over and over until there are so many, for batches larger than the collection."""
    return reports.take(np.tile(np.arange(len(reports)), -(-int(least) // len(reports))))


def as_long_as_ct(reports: Reports) -> Reports:
    """As many reports, as long as those of chest CT: log-normal of median 300 tokens and sigma 0.5,
    rounded, between 8 and 512, so that one in seven is cut. Their tokens are drawn from the real
    ones."""
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(np.log(CT_MEDIAN), CT_SIGMA, len(reports))
    lengths = np.clip(np.rint(drawn), 8, LENGTHS["ct"]).astype(np.int32)
    return Reports(rng.choice(reports.ids, lengths.sum()), lengths, reports.labels)


def backbone_of(model: str, num_labels: int, folder: Path) -> Backbone:
    """MiniLM with its real weights, or random ones of published sizes, written to `folder`."""
    if model not in PUBLISHED_SIZES:
        return resolve_backbone(model)
    directory, pooling = folder / model, PRESETS[model].pooling
    write_random_model(directory, PUBLISHED_SIZES[model], num_labels, pooling)
    return Backbone(model, directory, pooling)


def write_random_model(
    directory: Path, encoder: Mapping[str, Any], num_labels: int, pooling: str
) -> None:
    """A checkpoint with this config.json, its weights drawn by a fixed seed."""
    config = as_config(encoder)
    model = MODELS[config.model_type](config, num_labels, pooling, rngs=nnx.Rngs(0))
    save_checkpoint(directory, model, config, map(str, range(num_labels)))
