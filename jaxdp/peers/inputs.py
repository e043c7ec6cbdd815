# SPDX-License-Identifier: Apache-2.0
"""What all contenders train on: backbones at published sizes, real or synthetic reports."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jaxdp.backbone import Backbone, resolve_backbone
from jaxdp.config import Config, default_config
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.models.merged import save_checkpoint
from jaxdp.models.presets import PRESETS, PUBLISHED_SIZES
from jaxdp.models.pretrained import MODELS, as_config, read_config
from jaxdp.training.setup import Inputs, load_inputs

from .job import Job
from .start import make_job

MODEL_NAMES = ("minilm-l6", *PUBLISHED_SIZES)
LENGTHS = {"openi": 128, "ct": 512}
"""Name -> data.max_length."""
CT_MEDIAN, CT_SIGMA = 300, 0.5


def load(lengths: str, reports: float) -> Inputs:
    """Open-I in MiniLM's tokens (those of BERT, uncased), over and over until there are so many
    training reports; as they are ("openi"), or `as_long_as_ct`."""
    settings = default_config()
    settings.data.max_length = LENGTHS[lengths]
    settings.privacy.epsilon = None
    inputs = load_inputs(Config.from_dict(settings.to_dict()))
    inputs = repeated(inputs, -(-int(reports) // inputs.units.num_units))
    return inputs if lengths == "openi" else as_long_as_ct(inputs)


def as_long_as_ct(inputs: Inputs) -> Inputs:
    """As many reports, as long as those of chest CT: log-normal of median 300 tokens and sigma 0.5,
    rounded, between 8 and 512, so that one in seven is cut. Their tokens are drawn from the real
    ones."""
    rng, tokens = np.random.default_rng(0), {}
    for split, reports in inputs.tokens.items():
        drawn = rng.lognormal(np.log(CT_MEDIAN), CT_SIGMA, len(reports))
        counts = np.clip(np.rint(drawn), 8, LENGTHS["ct"]).astype(np.int32)
        values = rng.choice(np.asarray(reports.values), counts.sum())
        tokens[split] = Packed.from_lengths(values, counts)
    return dataclasses.replace(inputs, tokens=tokens)


def repeated(inputs: Inputs, times: int) -> Inputs:
    """The training reports that many times over, for batches larger than the collection."""
    train = inputs.tokens["train"]
    tiled = Packed.from_lengths(np.tile(train.values, times), np.tile(train.lengths, times))
    labels = np.tile(inputs.labels["train"], (times, 1))
    units = np.arange(len(tiled) + 1)
    return dataclasses.replace(
        inputs,
        tokens=inputs.tokens | {"train": tiled},
        labels=inputs.labels | {"train": labels},
        units=PrivacyUnits("report", units[:-1], units),
    )


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


def write_job(
    inputs: Inputs, backbone: Backbone, batch: float, max_length: int, layers: str, folder: Path
) -> Job:
    """The main stage alone, LoRA of rank 8 on query and value and the head, written to `folder`.

    Token ids beyond the backbone's vocabulary (ALBERT's is smaller) wrap around: only their number
    matters here.
    """
    settings = default_config()
    settings.data.max_length = max_length
    settings.model.backbone = str(backbone.directory)
    settings.model.pooling = backbone.pooling
    settings.lora.layers, settings.lora.targets = layers, ("query", "value")
    settings.train.expected_batch_size = float(batch)
    settings.privacy.units = inputs.units.num_units
    settings.run.research_seed = 0
    vocabulary = read_config(backbone.directory).vocab_size
    tokens = {
        split: dataclasses.replace(reports, values=reports.values % vocabulary)
        for split, reports in inputs.tokens.items()
    }
    inputs = dataclasses.replace(inputs, tokens=tokens, backbone=backbone)
    folder.mkdir(parents=True)
    return make_job(Config.from_dict(settings.to_dict()), inputs, folder)
