# SPDX-License-Identifier: Apache-2.0
"""CT-RATE (Hamamci et al., 2024) from the tables of its Hugging Face repository.

The tables have one row per reconstruction of a scan, all with the scan's one report. A row each
would put most reports into training twice, at twice the sensitivity that is accounted for.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .dataset import DataError, ReportDataset, hold_out_validation
from .labels import parse_cells
from .locate import one_version, require_found, walk
from .readers import clean_text, read_rows

LABELS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
SECTIONS = {
    "findings+impression": ("Findings_EN", "Impressions_EN"),
    "impression+findings": ("Impressions_EN", "Findings_EN"),
    "findings": ("Findings_EN",),
    "impression": ("Impressions_EN",),
}
"""config.data.text -> the columns that are joined."""

_FILES = {
    "train": ("train_reports.csv", "train_predicted_labels.csv"),
    "valid": ("validation_reports.csv", "valid_predicted_labels.csv"),
}
_VOLUME = re.compile(r"((train|valid)_\d+)_([a-z]+)_(\d+)(\.nii(\.gz)?)?")
_VOLUME_FOLDERS = re.compile(r"(train|valid)(_fixed)?(_\d+.*)?|\..*")

Scan = tuple[str, str]
"""(patient, letter of the scan)."""


def load_ctrate(
    root: Path,
    *,
    text: str = "findings+impression",
    labels: Sequence[str] = LABELS,
    validation_fraction: float = 0.05,
    split_seed: int = 0,
) -> ReportDataset:
    """Reads one report per scan; what cannot be used is dropped and counted.

    The official validation patients are the test split. The collection has no third split, so
    validation is a random part of the official training patients.

    Args:
        root: folder with the four tables, at most five levels down.
        text: a key of SECTIONS. "Not given." counts as empty.
        labels: columns of the label tables.
        validation_fraction: chance of each training patient to be in validation, in [0, 1).
        split_seed: public seed of that draw.

    Raises:
        DataError: something is missing, damaged or unknown.
    """
    if text not in SECTIONS:
        raise DataError(f"data.text must be one of {', '.join(SECTIONS)}, not {text!r}")
    tables = _locate(Path(root))
    counts: Counter[str] = Counter()
    texts: dict[Scan, str] = {}
    cells: dict[Scan, list[float]] = {}
    for part, (report_table, label_table) in tables.items():
        _read_reports(report_table, part, SECTIONS[text], texts, counts)
        _read_labels(label_table, part, labels, cells, counts)
    counts["reports"] = len(texts)
    counts["labelled scans without a report"] = len(cells.keys() - texts.keys())
    counts["reports without labels, dropped"] = len(texts.keys() - cells.keys())
    labelled = [scan for scan in texts if scan in cells]
    kept = sorted(scan for scan in labelled if texts[scan])
    counts["reports without text, dropped"] = len(labelled) - len(kept)
    patients = np.array([patient for patient, _ in kept], dtype=str)
    splits = np.where(np.char.startswith(patients, "valid_"), "test", "train")
    return ReportDataset(
        name="CT-RATE",
        texts=[texts[scan] for scan in kept],
        labels=np.array([cells[scan] for scan in kept], np.int8).reshape(len(kept), len(labels)),
        label_names=tuple(labels),
        report_ids=np.array(["_".join(scan) for scan in kept], dtype=str),
        patient_ids=patients,
        splits=hold_out_validation(splits, patients, split_seed, validation_fraction),
        counts=dict(counts),
        label_origin="predicted from the reports by RadBERT, published with CT-RATE",
    )


def _locate(root: Path) -> dict[str, tuple[Path, Path]]:
    """Part -> (table of reports, table of labels)."""
    found: dict[str, list[Path]] = {name: [] for names in _FILES.values() for name in names}
    for here, _, files in walk(root, _VOLUME_FOLDERS):
        for name in files:
            if name.removesuffix(".gz") in found:
                found[name.removesuffix(".gz")].append(here / name)
    require_found(
        root,
        "CT-RATE",
        {name: bool(paths) for name, paths in found.items()},
        "dataset/radiology_text_reports and dataset/multi_abnormality_labels of the Hugging Face "
        "data set ibrahimhamamci/CT-RATE (terms to accept)",
    )
    return {
        part: (one_version(found[reports]), one_version(found[labels]))
        for part, (reports, labels) in _FILES.items()
    }


def _scan(volume: str, part: str, path: Path, row: int) -> Scan:
    match = _VOLUME.fullmatch(volume.strip())
    if match is None or match[2] != part:
        raise DataError(f"{path}: row {row} has no VolumeName like {part}_53_a_1.nii.gz")
    return match[1], match[3]


def _read_reports(
    path: Path, part: str, columns: Sequence[str], texts: dict[Scan, str], counts: Counter
) -> None:
    """Adds scan -> text; of reconstructions that differ, the first that has any text."""
    for row, (volume, *sections) in read_rows(path, ("VolumeName", *columns), counts):
        counts["rows read"] += 1
        scan = _scan(volume, part, path, row)
        text = "\n".join(filter(None, map(clean_text, sections)))
        if text != texts.setdefault(scan, text):
            counts["reconstructions whose text differs from the scan's first"] += 1
            texts[scan] = texts[scan] or text


def _read_labels(
    path: Path, part: str, labels: Sequence[str], cells: dict[Scan, list[float]], counts: Counter
) -> None:
    """Adds scan -> label cells; of reconstructions that differ, the first."""
    for row, (volume, *values) in read_rows(path, ("VolumeName", *labels), counts):
        parsed = parse_cells(values, f"{path}: row {row}")
        if not set(parsed) <= {0.0, 1.0}:
            raise DataError(f"{path}: row {row} has a label that is not 0 or 1")
        if parsed != cells.setdefault(_scan(volume, part, path, row), parsed):
            counts["reconstructions whose labels differ from the scan's first"] += 1
