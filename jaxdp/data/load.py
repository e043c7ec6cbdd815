# SPDX-License-Identifier: Apache-2.0
"""config.data -> `ReportDataset`: which loader reads which source."""

from pathlib import Path

from jaxdp import assets
from jaxdp.config import ConfigError, DataConfig, TeacherConfig
from jaxdp.models.tasks import TASKS

from . import ctrate, mimic, openi, padchest
from .dataset import ReportDataset
from .tables import load_table
from .teacher import apply_teacher


def _required_root(config: DataConfig, wanted: str) -> str:
    if config.root is None:
        raise ConfigError(f"config.data.root must be {wanted}")
    return config.root


_LABELS = {
    "openi": tuple(openi.LABELS),
    "mimic": mimic.LABELS,
    "ctrate": ctrate.LABELS,
    "padchest": tuple(padchest.LABELS),
}


def label_names(config: DataConfig) -> tuple[str, ...]:
    """The configured labels, or the source's own; nothing is read. Of a table none are known."""
    return config.labels or _LABELS.get(config.source, ())


def _openi(config: DataConfig) -> ReportDataset:
    root = Path(config.root) if config.root else assets.openi_archive()
    if root.is_dir():
        root = root / "NLMCXR_reports.tgz"
    return openi.load_openi(
        root,
        text=config.text,
        labels=label_names(config),
        split_seed=config.split_seed,
    )


def _mimic(config: DataConfig) -> ReportDataset:
    return mimic.load_mimic(
        Path(_required_root(config, "the folder that holds MIMIC-CXR and MIMIC-CXR-JPG's tables")),
        text=config.text,
        labels=label_names(config),
        labeler=config.labeler,
        uncertain=config.uncertain,
        blank=config.blank,
    )


def _ctrate(config: DataConfig) -> ReportDataset:
    return ctrate.load_ctrate(
        Path(_required_root(config, "the folder that holds CT-RATE's four tables")),
        text=config.text,
        labels=label_names(config),
        validation_fraction=config.validation_fraction,
        split_seed=config.split_seed,
    )


def _padchest(config: DataConfig) -> ReportDataset:
    return padchest.load_padchest(
        Path(config.root) if config.root else assets.padchest_table(),
        labels=label_names(config),
        evaluate_on=config.evaluate_on,
        split_seed=config.split_seed,
    )


def _table(config: DataConfig) -> ReportDataset:
    return load_table(
        _required_root(config, "a table, or the folder or hub id of a `datasets` data set"),
        labels=label_names(config),
        one_class=TASKS[config.task].one_class,
        text_columns=config.text_columns,
        label_column=config.label_column,
        id_column=config.id_column,
        patient_column=config.patient_column,
        split_column=config.split_column,
        uncertain=config.uncertain,
        blank=config.blank,
        validation_fraction=config.validation_fraction,
        split_seed=config.split_seed,
    )


SOURCES = {
    "openi": _openi,
    "mimic": _mimic,
    "ctrate": _ctrate,
    "padchest": _padchest,
    "table": _table,
}


def load_reports(config: DataConfig, teacher: TeacherConfig) -> ReportDataset:
    """Reads the configured source, and the teacher's labels if there are any.

    Raises:
        ConfigError: unknown source, or one that needs a root.
        DataError: what was found cannot be used.
    """
    if config.source not in SOURCES:
        raise ConfigError(
            f"config.data.source must be one of {', '.join(SOURCES)}, not {config.source!r}"
        )
    dataset = SOURCES[config.source](config)
    if teacher.path is None:
        return dataset
    return apply_teacher(
        dataset,
        Path(teacher.path),
        origin=teacher.origin,
        mode=teacher.mode,
        id_column=teacher.id_column,
        max_missing=teacher.max_missing,
        max_surplus=teacher.max_surplus,
        uncertain=config.uncertain,
        blank=config.blank,
    )
