# SPDX-License-Identifier: Apache-2.0
"""CT-RATE (Hamamci et al., 2024) from the tables of its Hugging Face repository.

The tables have one row per reconstruction of a scan, all with the scan's one report. A row each
would put most reports into training twice, at twice the sensitivity that is accounted for.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

import numpy as np

from .dataset import DataError, ReportDataset, hold_out_validation
from .labels import parse_cells
from .locate import one_version, require_found, walk
from .readers import clean_text, open_text, read_rows

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

_REPORTS, _LABELS = "dataset/radiology_text_reports", "dataset/multi_abnormality_labels"
_FILES = {
    "train": (f"{_REPORTS}/train_reports.csv", f"{_LABELS}/train_predicted_labels.csv"),
    "valid": (f"{_REPORTS}/validation_reports.csv", f"{_LABELS}/valid_predicted_labels.csv"),
}
_NO_CHEST = {part: f"dataset/metadata/no_chest_{part}.txt" for part in _FILES}
"""Volumes of something else, mostly heads: the makers' own lists, which came later."""
_VOLUME = re.compile(r"((train|valid)_\d+)_([a-z]+)_(\d+)(\.nii(\.gz)?)?")
_VOLUME_FOLDERS = re.compile(r"(train|valid)(_fixed)?(_\d+.*)?|\..*")

_DROPPED = "volumes without a chest, dropped"

Scan = tuple[str, str]
"""(patient, letter of the scan)."""
Volume = tuple[Scan, str]
"""(scan, number of the reconstruction)."""


def load_ctrate(
    root: Path,
    *,
    text: str = "findings+impression",
    labels: Sequence[str] = LABELS,
    validation_fraction: float = 0.05,
    split_seed: int = 0,
) -> ReportDataset:
    """Reads one report per scan; what cannot be used is dropped and counted, and so are volumes
    that the no_chest lists name, where those are.

    The official validation patients are the test split. The collection has no third split, so
    validation is a random part of the official training patients.

    Args:
        root: folder with the four tables, at most five levels down. A name may be a file's own, or
            its path with / turned to _.
        text: a key of SECTIONS. "Not given." counts as empty.
        labels: columns of the label tables.
        validation_fraction: chance of each training patient to be in validation, in [0, 1).
        split_seed: public seed of that draw.

    Raises:
        DataError: something is missing, damaged or unknown.
    """
    if text not in SECTIONS:
        raise DataError(f"data.text must be one of {', '.join(SECTIONS)}, not {text!r}")
    tables, lists = _locate(Path(root))
    counts: Counter[str] = Counter()
    no_chest = {volume for part, path in lists.items() for volume in _listed(path, part)}
    if lists:
        counts[_DROPPED] = 0
    texts: dict[Scan, str] = {}
    cells: dict[Scan, list[float]] = {}
    for part, (report_table, label_table) in tables.items():
        _read_reports(report_table, part, SECTIONS[text], texts, counts, no_chest)
        _read_labels(label_table, part, labels, cells, counts, no_chest)
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


def _locate(root: Path) -> tuple[dict[str, tuple[Path, Path]], dict[str, Path]]:
    """(part -> (table of reports, table of labels), part -> list of volumes without a chest)."""
    tables = [path for pair in _FILES.values() for path in pair]
    found: dict[str, list[Path]] = {path: [] for path in (*tables, *_NO_CHEST.values())}
    # As the file is called where it is published, or with some of its folders in the name.
    named = {"_".join(path.split("/")[first:]): path for path in found for first in range(3)}
    for here, _, files in walk(root, _VOLUME_FOLDERS):
        for name in files:
            if path := named.get(name.removesuffix(".gz")):
                found[path].append(here / name)
    require_found(
        root,
        "CT-RATE",
        {Path(path).name: bool(found[path]) for path in tables},
        f"{_REPORTS} and {_LABELS} of the Hugging Face data set ibrahimhamamci/CT-RATE (terms to "
        "accept)",
    )
    one = {path: one_version(paths) for path, paths in found.items() if paths}
    return (
        {part: (one[reports], one[labels]) for part, (reports, labels) in _FILES.items()},
        {part: one[path] for part, path in _NO_CHEST.items() if path in one},
    )


def _volume(name: str, part: str, path: Path, row: int) -> Volume:
    match = _VOLUME.fullmatch(name.strip())
    if match is None or match[2] != part:
        raise DataError(f"{path}: row {row} has no VolumeName like {part}_53_a_1.nii.gz")
    return (match[1], match[3]), match[4]


def _listed(path: Path, part: str) -> Iterator[Volume]:
    """Volumes of a list: one a line, with or without folders before it."""
    with open_text(path) as lines:
        for row, line in enumerate(lines, 1):
            if name := line.strip():
                yield _volume(name.rpartition("/")[2], part, path, row)


def _read_reports(
    path: Path,
    part: str,
    columns: Sequence[str],
    texts: dict[Scan, str],
    counts: Counter,
    no_chest: Set[Volume],
) -> None:
    """Adds scan -> text; of reconstructions that differ, the first that has any text."""
    for row, (name, *sections) in read_rows(path, ("VolumeName", *columns), counts):
        counts["rows read"] += 1
        volume = scan, _ = _volume(name, part, path, row)
        if volume in no_chest:
            counts[_DROPPED] += 1
            continue
        text = "\n".join(filter(None, map(clean_text, sections)))
        if text != texts.setdefault(scan, text):
            counts["reconstructions whose text differs from the scan's first"] += 1
            texts[scan] = texts[scan] or text


def _read_labels(
    path: Path,
    part: str,
    labels: Sequence[str],
    cells: dict[Scan, list[float]],
    counts: Counter,
    no_chest: Set[Volume],
) -> None:
    """Adds scan -> label cells; of reconstructions that differ, the first."""
    for row, (name, *values) in read_rows(path, ("VolumeName", *labels), counts):
        parsed = parse_cells(values, f"{path}: row {row}")
        if not set(parsed) <= {0.0, 1.0}:
            raise DataError(f"{path}: row {row} has a label that is not 0 or 1")
        volume = scan, _ = _volume(name, part, path, row)
        if volume not in no_chest and parsed != cells.setdefault(scan, parsed):
            counts["reconstructions whose labels differ from the scan's first"] += 1
