# SPDX-License-Identifier: Apache-2.0
"""A backbone's name -> a directory with weights and tokenizer, and how to pool."""

import dataclasses
import re
from pathlib import Path

from jaxdp import assets
from jaxdp.config import ConfigError
from jaxdp.models.hub import download
from jaxdp.models.presets import PRESETS

_MINILM = PRESETS["minilm-l6"].hub_id


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone on this machine."""

    name: str
    """What an adapter's base model is called: hub id, or the directory as given."""
    directory: Path
    pooling: str
    revision: str | None = None


def resolve_backbone(
    name: str, pooling: str | None = None, revision: str | None = None
) -> Backbone:
    """Finds a backbone, downloading it where needed.

    Args:
        name: preset, directory, or hub id "owner/name"; as in config.model.backbone, or in an
            adapter's base_model_name_or_path.
        pooling: "cls" or "mean"; None is the preset's own, or "cls".
        revision: of a hub id.

    Raises:
        ConfigError: neither a preset, nor a directory, nor of a hub id's form.
        AssetError, WeightsError: it could not be downloaded.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        return Backbone(name, directory, pooling or "cls")
    hub_id = PRESETS[name].hub_id if name in PRESETS else name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id):
        raise ConfigError(
            f"config.model.backbone {name!r} is no directory, no hub id (owner/name) and no preset "
            f"({', '.join(PRESETS)})"
        )
    if pooling is None:
        pooling = next((p.pooling for p in PRESETS.values() if p.hub_id == hub_id), "cls")
    # The package registry has this one, which needs no hub.
    if hub_id == _MINILM and revision is None:
        return Backbone(hub_id, assets.minilm_directory(), pooling)
    return Backbone(hub_id, download(hub_id, revision), pooling, revision)
