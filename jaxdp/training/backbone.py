# SPDX-License-Identifier: Apache-2.0
"""config.model -> a directory with weights and tokenizer, and how to pool."""

import dataclasses
from pathlib import Path

from jaxdp import assets
from jaxdp.config import ConfigError, ModelConfig


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone on this machine."""

    name: str
    """What the adapter's base model is called: preset, hub id or directory."""
    directory: Path
    pooling: str


def resolve_backbone(model: ModelConfig) -> Backbone:
    """Finds or fetches the backbone.

    Raises:
        ConfigError: neither a preset nor a directory.
    """
    if model.backbone == "minilm-l6":
        return Backbone(
            "sentence-transformers/all-MiniLM-L6-v2",
            assets.minilm_directory(),
            model.pooling or "mean",
        )
    directory = Path(model.backbone).expanduser()
    if not directory.is_dir():
        raise ConfigError(
            f"config.model.backbone {model.backbone!r} is neither a preset (minilm-l6) nor a "
            "directory"
        )
    return Backbone(model.backbone, directory, model.pooling or "cls")
