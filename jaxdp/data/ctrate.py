# SPDX-License-Identifier: Apache-2.0
"""CT-RATE (Hamamci et al., 2024) from the tables of its Hugging Face repository.

The tables have one row per reconstruction of a scan, all with the scan's one report. A row each
would put most reports into training twice, at twice the sensitivity that is accounted for.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .dataset import DataError, ReportDataset, hold_out_validation, require_choice
from .labels import parse_cells, with_labels
from .locate import find, one_version, require_found
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
_VOLUME_FOLDERS = r"(train|valid)(_fixed)?(_\d+.*)?|\..*"

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
        validation_fraction, split_seed: as in `config.DataConfig`.

    Raises:
        DataError: something is missing, damaged or unknown.
    """
    require_choice("data.text", text, SECTIONS)
    tables, lists = _locate(Path(root))
    counts: Counter[str] = Counter()
    no_chest = {volume for part, path in lists.items() for volume in _listed(path, part)}
    if lists:
        counts[_DROPPED] = 0
    texts: dict[Scan, str] = {}
    cells: dict[Scan, list[float]] = {}
    for part, (report_table, label_table) in tables.items():
        for _, volume, sections in _rows(report_table, part, SECTIONS[text], counts):
            counts["rows read"] += 1
            if volume in no_chest:
                counts[_DROPPED] += 1
                continue
            scan, whole = volume[0], "\n".join(filter(None, map(clean_text, sections)))
            if whole != texts.setdefault(scan, whole):
                counts["reconstructions whose text differs from the scan's first"] += 1
                texts[scan] = texts[scan] or whole  # the first that has any
        for where, volume, values in _rows(label_table, part, labels, counts):
            parsed = parse_cells(values, where)
            if not set(parsed) <= {0.0, 1.0}:
                raise DataError(f"{where} has a label that is not 0 or 1")
            # the first counts
            if volume not in no_chest and parsed != cells.setdefault(volume[0], parsed):
                counts["reconstructions whose labels differ from the scan's first"] += 1
    counts["reports"] = len(texts)
    labelled = with_labels(texts, cells, "scans", counts)
    kept = [scan for scan in labelled if texts[scan]]
    counts["reports without text, dropped"] = len(labelled) - len(kept)
    patients = [patient for patient, _ in kept]
    splits = np.array(["test" if p.startswith("valid_") else "train" for p in patients])
    return ReportDataset(
        name="CT-RATE",
        texts=[texts[scan] for scan in kept],
        labels=np.array([cells[scan] for scan in kept], np.int8).reshape(len(kept), len(labels)),
        label_names=tuple(labels),
        report_ids=["_".join(scan) for scan in kept],
        patient_ids=patients,
        splits=hold_out_validation(splits, patients, split_seed, validation_fraction),
        counts=dict(counts),
        label_origin="predicted from the reports by RadBERT, published with CT-RATE",
    )


def _locate(root: Path) -> tuple[dict[str, tuple[Path, Path]], dict[str, Path]]:
    """(part -> (table of reports, table of labels), part -> list of volumes without a chest)."""
    tables = [path for pair in _FILES.values() for path in pair]
    # As the file is called where it is published, or with some of its folders in the name.
    patterns = {
        path: rf"((dataset_)?{re.escape(folder)}_)?{re.escape(name)}(\.gz)?"
        for path in (*tables, *_NO_CHEST.values())
        for _, folder, name in [path.split("/")]
    }
    found = find(root, patterns, _VOLUME_FOLDERS)
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


def _volume(name: str, part: str, where: str) -> Volume:
    match = _VOLUME.fullmatch(name.strip())
    if match is None or match[2] != part:
        raise DataError(f"{where} has no VolumeName like {part}_53_a_1.nii.gz")
    return (match[1], match[3]), match[4]


def _listed(path: Path, part: str) -> Iterator[Volume]:
    """Volumes of a list: one a line, with or without folders before it."""
    with open_text(path) as lines:
        for row, line in enumerate(lines, 1):
            if name := line.strip():
                yield _volume(name.rpartition("/")[2], part, f"{path}: row {row}")


def _rows(
    table: Path, part: str, columns: Sequence[str], counts: Counter
) -> Iterator[tuple[str, Volume, list[str]]]:
    """(file and row, volume, values of the columns)."""
    for where, (name, *values) in read_rows(table, ("VolumeName", *columns), counts):
        yield where, _volume(name, part, where), values
