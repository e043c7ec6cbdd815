# SPDX-License-Identifier: Apache-2.0
"""config.data -> `ReportDataset`: which loader reads which source."""

from pathlib import Path

from jaxdp import assets
from jaxdp.config import ConfigError, DataConfig

from .dataset import ReportDataset
from .openi import LABELS as OPENI_LABELS
from .openi import load_openi


def _openi(config: DataConfig) -> ReportDataset:
    root = Path(config.root) if config.root else assets.openi_archive()
    if root.is_dir():
        root = root / "NLMCXR_reports.tgz"
    return load_openi(
        root,
        text=config.text,
        labels=tuple(OPENI_LABELS) if config.labels is None else config.labels,
        split_seed=config.split_seed,
    )


SOURCES = {"openi": _openi}


def load_reports(config: DataConfig) -> ReportDataset:
    """Reads the configured source.

    Raises:
        ConfigError: unknown source.
        DataError: what was found cannot be used.
    """
    if config.source not in SOURCES:
        raise ConfigError(
            f"config.data.source must be one of {', '.join(SOURCES)}, not {config.source!r}"
        )
    return SOURCES[config.source](config)
