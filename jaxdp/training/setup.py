# SPDX-License-Identifier: Apache-2.0
"""From a configuration to data and model in memory."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxdp.backbone import Backbone, resolve_backbone
from jaxdp.config import ON_ACCELERATOR, ON_CPU, Config, ConfigError, PlatformDefaults
from jaxdp.data.batching import Buckets
from jaxdp.data.dataset import SPLITS, ReportDataset
from jaxdp.data.load import load_reports
from jaxdp.data.packed import Packed
from jaxdp.data.tokens import load_tokenizer, tokenize
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import Predictor, Watch, unwatched
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.pretrained import positions_of, read_config

from .members import stack, stack_differing


@dataclasses.dataclass(frozen=True, repr=False)
class Inputs:
    """What a run reads: labelled reports by split, as token ids."""

    dataset: ReportDataset
    tokens: dict[str, Packed]  # split -> token ids, in the order of `dataset.subset(split)`
    labels: dict[str, np.ndarray]
    cut: int  # reports longer than data.max_length, or than data.windows of it
    units: PrivacyUnits  # the training reports by privacy unit
    backbone: Backbone
    max_length: int  # tokens that the backbone reads at once: data.max_length

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each report of all splits."""
        return np.concatenate([tokens.lengths for tokens in self.tokens.values()])

    @property
    def num_labels(self) -> int:
        return len(self.dataset.label_names)

    def training_records(self) -> Iterator[bytes]:
        """One record per training report, text and labels: what a ledger's fingerprint is of."""
        part = self.dataset.subset("train")
        for text, labels in zip(part.texts, part.labels, strict=True):
            yield text.encode() + b"\0" + labels.tobytes()

    def grouping(self) -> list[bytes]:
        """Which of those belong to which privacy unit."""
        return [self.units.members.tobytes(), self.units.offsets.tobytes()]


def load_inputs(config: Config, dataset: ReportDataset | None = None) -> Inputs:
    """Reads and tokenises all splits; of a `dataset` that is given, those that it has.

    Raises:
        ConfigError, AssetError, DataError, WeightsError: data or backbone cannot be used.
    """
    # First, as the backbone may have to be downloaded.
    splits = SPLITS
    if dataset is None:
        dataset = load_reports(config.data, config.teacher)
    else:
        splits = [split for split in SPLITS if (dataset.splits == split).any()]
    backbone = resolve_backbone(config.model.backbone, config.model.pooling, config.model.revision)
    positions = positions_of(read_config(backbone.directory))
    if config.data.max_length > positions:
        raise ConfigError(
            f"config.data.max_length must be at most {positions}, the positions of "
            f"{backbone.name}, not {config.data.max_length}"
        )
    if config.data.windows > 1 and backbone.pooling in ("cls", "first"):
        raise ConfigError(
            "config.model.pooling must be mean, mean-last2 or label-attention with data.windows, "
            f"not {backbone.pooling}: no token is the first of all windows"
        )
    tokenizer = load_tokenizer(backbone.directory)
    tokens, labels, cut = {}, {}, 0
    window = config.data.max_length, config.data.windows
    for split in splits:
        part = dataset.subset(split)
        tokens[split], part_cut = tokenize(part.texts, tokenizer, *window, cache=config.data.cache)
        labels[split] = part.labels
        cut += part_cut
    units = PrivacyUnits.of(
        dataset.subset("train"),
        config.privacy.unit,
        max_reports_per_patient=config.privacy.max_reports_per_patient,
    )
    return Inputs(dataset, tokens, labels, cut, units, backbone, config.data.max_length)


def configure(config: Config, model: ReportClassifier, rngs: nnx.Rngs) -> None:
    """Sets task, precision, windows, and fresh adapters, by config.lora, if something trains them.

    Raises:
        ConfigError: config.lora names no layer.
    """
    model.task = config.data.task
    model.precision = compute_dtype(config)
    if config.data.windows > 1:
        model.window = (config.data.max_length, config.data.windows)
    if not config.train.mode.startswith("lora") and not config.warm_start.trains_adapters:
        return
    try:
        lora.add_lora(
            model,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            targets=config.lora.targets or model.lora_targets,
            first_layer=config.lora.first_layer(model.depth),
            rngs=rngs,
        )
    except ValueError as error:
        raise ConfigError(f"config.{str(error).removeprefix('config.')}") from None


def keeping(folder: str | Path | None) -> Path | None:
    """The folder, if there is one; None with several processes: they could see different files."""
    return None if folder is None or jax.process_count() > 1 else Path(folder)


def platform_defaults(platform: str | None = None) -> PlatformDefaults:
    """What settings are that the configuration leaves to the platform; None is the one here."""
    return ON_CPU if (platform or jax.default_backend()) == "cpu" else ON_ACCELERATOR


def compute_dtype(config: Config) -> str:
    """The type of matrix products that the configuration asks for."""
    return config.model.dtype or platform_defaults().dtype


def arithmetic(config: Config) -> str:
    """What matrix products are computed in here: only a GPU has TensorFloat-32."""
    instead = {"cpu": "float32", "tpu": "bfloat16_3x"}  # by JAX's name: three products for one
    dtype = compute_dtype(config)
    return instead.get(jax.default_backend(), dtype) if dtype == "tensorfloat32" else dtype


def token_buckets(
    config: Config,
    lengths: np.ndarray,
    members: int = 1,
    share: bool = True,
    defaults: PlatformDefaults | None = None,
) -> Buckets:
    """The microbatch shapes for whole reports of these lengths, which `share` rows where they can.
    Those that so many members compute at once hold as many positions together as one member's, as
    far as a report can be no shorter. `defaults` are this platform's where none are given."""
    here, train = defaults or platform_defaults(), config.train
    tokens = (train.microbatch_tokens or here.microbatch_tokens) // members
    # Gradients of what every token goes through are those of reports alone, and so are windows.
    share &= train.mode not in ("bitfit", "full") and config.data.windows == 1
    # Nor are adapters of several readers ever those of each report.
    if train.trained != "head" and config.warm_start.readers > 1:
        share, tokens = False, tokens // config.warm_start.readers  # each computes its own
    if share and train.widths is None and (shared := Buckets.shared(lengths, tokens)):
        return shared
    return Buckets.for_lengths(lengths, tokens, train.widths or here.widths)


def test_probabilities(
    config: Config,
    models: Sequence[ReportClassifier],
    inputs: Inputs,
    mesh: Mesh | None = None,
    watch: Watch = unwatched,
) -> list[np.ndarray]:
    """[n, num_labels] of each finished model for the test split, from token ids. Several models
    are those of one program, see `members.share_frozen`."""
    parts = (lora.split(model, config.train.trained) for model in models)
    graphdefs, adapters, frozen = zip(*parts, strict=True)
    computed = 1 if config.train.trained == "head" else len(models)  # all layers are shared
    buckets, tokens = token_buckets(config, inputs.lengths, computed), inputs.tokens["test"]
    if len(models) == 1:
        return [Predictor(graphdefs[0], 0, buckets, mesh)(*adapters, *frozen, tokens, watch=watch)]
    frozen, axes = stack_differing(frozen)
    predict = Predictor(graphdefs[0], 0, buckets, mesh, (0, axes, None))
    return list(predict(stack(adapters), frozen, tokens, watch=watch))
