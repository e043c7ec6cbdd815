# SPDX-License-Identifier: Apache-2.0
"""config.data -> `ReportDataset`: which loader reads which source."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxdp import assets
from jaxdp.config import DataConfig, TeacherConfig
from jaxdp.models.tasks import TASKS
from jaxdp.settings import ConfigError

from . import ctrate, mimic, openi, padchest
from .dataset import ReportDataset
from .tables import load_table
from .teacher import apply_teacher


class Source(NamedTuple):
    """How a source is read."""

    load: Callable[..., ReportDataset]
    """Takes data.root, and by name `labels` and fields of `DataConfig`."""
    labels: tuple[str, ...]
    """Its own, where config names none."""
    root: Callable[[], Path] | str
    """Where data.root is None: fetches it, or says what it must be."""


SOURCES = {
    "openi": Source(openi.load_openi, tuple(openi.LABELS), assets.openi_archive),
    "mimic": Source(
        mimic.load_mimic,
        mimic.LABELS,
        "the folder that holds MIMIC-CXR and MIMIC-CXR-JPG's tables",
    ),
    "ctrate": Source(
        ctrate.load_ctrate, ctrate.LABELS, "the folder that holds CT-RATE's four tables"
    ),
    "padchest": Source(padchest.load_padchest, tuple(padchest.LABELS), assets.padchest_table),
    "table": Source(load_table, (), "a table, or the folder or hub id of a `datasets` data set"),
}
_FOUND_OUT = {"labels", "one_class"}
"""What a loader takes beside fields of `DataConfig`: worked out below."""


def label_names(config: DataConfig) -> tuple[str, ...]:
    """The configured labels, or the source's own; nothing is read. Of a table none are known."""
    known = SOURCES[config.source].labels if config.source in SOURCES else ()
    return config.labels or known


def source_of(config: DataConfig) -> Source:
    """ConfigError for an unknown source, or one that needs a root or labels that are not set."""
    if config.source not in SOURCES:
        raise ConfigError(
            f"config.data.source must be one of {', '.join(SOURCES)}, not {config.source!r}"
        )
    source = SOURCES[config.source]
    if not config.root and isinstance(source.root, str):
        raise ConfigError(f"config.data.root must be {source.root}")
    if not label_names(config):
        raise ConfigError("config.data.labels must name the labels of a table")
    return source


def load_reports(config: DataConfig, teacher: TeacherConfig) -> ReportDataset:
    """Reads the configured source, and the teacher's labels if there are any.

    Raises:
        ConfigError: see `source_of`.
        DataError: what was found cannot be used.
    """
    source = source_of(config)
    fields = inspect.signature(source.load).parameters.values()
    taken = {field.name for field in fields if field.kind is field.KEYWORD_ONLY} - _FOUND_OUT
    settings = {name: getattr(config, name) for name in taken}
    if TASKS[config.task].one_class:
        settings["one_class"] = True  # of tables alone, as `DataConfig` makes sure
    dataset = source.load(config.root or source.root(), labels=label_names(config), **settings)
    if teacher.path is None:
        return dataset
    policy = {"uncertain": config.uncertain, "blank": config.blank}
    return apply_teacher(dataset, **vars(teacher), **policy)
