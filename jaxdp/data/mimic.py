# SPDX-License-Identifier: Apache-2.0
"""MIMIC-CXR (Johnson et al., 2019) from the files as PhysioNet ships them.

Reports are in MIMIC-CXR (`files/p10/p10000032/s50414267.txt`, or the archive with all of them),
labels and the official split in MIMIC-CXR-JPG. Access is credentialed; nothing is fetched.
"""

import functools
import itertools
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .dataset import DataError, ReportDataset, require_choice
from .labels import LabelPolicy, parse_cells, with_labels
from .locate import find, one_version, require_found
from .mimic_sections import labelled_section, named_sections
from .readers import clean_text, decode, read_rows

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
SECTIONS = {
    "impression+findings": ("impression", "findings"),
    "findings+impression": ("findings", "impression"),
    "impression": ("impression",),
    "findings": ("findings",),
}
TEXTS = (*SECTIONS, "labelled-section", "full")
"""Choices of config.data.text. The first of joined sections survives truncation best."""
LABELERS = {"chexpert": "CheXpert", "negbio": "NegBio"}

_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_GROUP = r"p1\d"
_REPORT = re.compile(r"(?:^|/)p(1\d{7})/s(5\d{7})\.txt\Z")
_NUMBER = re.compile(r"[sp]?(\d{1,18})(\.0)?", re.ASCII)
_ARCHIVE = "mimic-cxr-reports.zip"
_SOURCE = (
    "reports: https://physionet.org/content/mimic-cxr; "
    "labels and split: https://physionet.org/content/mimic-cxr-jpg (credentialed access)"
)

Reports = dict[int, tuple[int, Callable[[], bytes]]]
"""Study -> (patient, reads its report)."""


def load_mimic(
    root: Path,
    *,
    text: str = "labelled-section",
    labels: Sequence[str] = LABELS,
    labeler: str = "chexpert",
    uncertain: str = "zeros",
    blank: str = "zeros",
) -> ReportDataset:
    """Reads the collection; what cannot be used is dropped and counted.

    Where a report lacks the chosen sections, its labelled section stands in; that is counted too.
    A blank "No Finding" is always negative: the labelers write only 1 or blank there.

    Args:
        root: folder that holds, at most five levels down, the report tree or the archive (which
            is preferred), the label table and the split table.
        text: one of TEXTS.
        labels: columns of the label table.
        labeler: a key of LABELERS: whose table is read.
        uncertain, blank: what becomes of such labels, see `LabelPolicy`.

    Raises:
        DataError: something is missing, damaged, contradictory or unknown.
    """
    require_choice("data.text", text, TEXTS)
    policy = LabelPolicy(uncertain, blank)
    label_table, split_table, reports = _locate(Path(root), labeler)
    counts = Counter({"reports found": len(reports)})
    split_of = _read_splits(split_table, counts)
    cells = _read_labels(label_table, labels, split_of, counts)
    labelled = with_labels(reports, cells, "studies", counts)
    studies = [study for study in labelled if study in split_of]
    counts["reports without a split, dropped"] = len(labelled) - len(studies)
    texts, kept = [], []
    for study in studies:
        patient, read = reports[study]
        if patient != split_of[study][0]:
            raise DataError(f"{split_table} and the report tree disagree on a study's patient")
        chosen = _choose(decode(read(), counts), study, text, counts)
        if chosen:
            texts.append(chosen)
            kept.append(study)
    counts["reports without text, dropped"] = len(studies) - len(kept)
    table = np.array([cells[s] for s in kept], float).reshape(len(kept), len(labels))
    if "No Finding" in labels:
        column = table[:, list(labels).index("No Finding")]
        column[np.isnan(column)] = 0
    counts.update(policy.tally(table))
    return ReportDataset(
        name="MIMIC-CXR",
        texts=texts,
        labels=policy.apply(table),
        label_names=tuple(labels),
        report_ids=[f"s{s}" for s in kept],
        patient_ids=[f"p{split_of[s][0]}" for s in kept],
        splits=[split_of[s][1] for s in kept],
        counts=dict(counts),
        label_origin=(
            f"the rule-based {LABELERS[labeler]} labeler run on each report's labelled section, "
            f"published with MIMIC-CXR-JPG ({policy})"
        ),
    )


def _choose(content: str, study: int, text: str, counts: Counter) -> str:
    """The text to classify, on one line."""
    if text == "full":
        return clean_text(content)
    if text in SECTIONS:
        if chosen := clean_text(named_sections(content, SECTIONS[text])):
            return chosen
        counts["reports without the chosen sections, labelled section used"] += 1
    return clean_text(labelled_section(content, study))


def _rows(
    path: Path, columns: Sequence[str], counts: Counter
) -> Iterator[tuple[str, int, int, list[str]]]:
    """(file and row, study, subject, values of the columns). Numbers may be written as "s50414267"
    or as "50414267.0"."""
    for where, cells in read_rows(path, ("study_id", "subject_id", *columns), counts):
        study, subject = (_NUMBER.fullmatch(cell.strip()) for cell in cells[:2])
        if study is None or subject is None:
            raise DataError(f"{where} has no whole number as study_id or subject_id")
        yield where, int(study[1]), int(subject[1]), cells[2:]


def _read_splits(path: Path, counts: Counter) -> dict[int, tuple[int, str]]:
    """Study -> (patient, split), from a table with one row per image."""
    result: dict[int, tuple[int, str]] = {}
    for where, study, subject, (split,) in _rows(path, ("split",), counts):
        if split.strip() not in _SPLITS:
            raise DataError(f"{where} has a split that is not {', '.join(_SPLITS)}")
        entry = (subject, _SPLITS[split.strip()])
        if result.setdefault(study, entry) != entry:
            raise DataError(f"{where} gives its study another patient or split")
    return result


def _read_labels(
    path: Path, labels: Sequence[str], split_of: dict[int, tuple[int, str]], counts: Counter
) -> dict[int, list[float]]:
    """Study -> label cells."""
    result: dict[int, list[float]] = {}
    for where, study, subject, values in _rows(path, labels, counts):
        if study in result:
            raise DataError(f"{where} repeats a study")
        if study in split_of and split_of[study][0] != subject:
            raise DataError(f"{where} gives its study another patient than the split")
        result[study] = parse_cells(values, where)
    return result


def _locate(root: Path, labeler: str) -> tuple[Path, Path, Reports]:
    """(label table, split table, reports) below `root`."""
    table = r"mimic-cxr-2\.[\d.]+-{}\.csv(\.gz)?"
    patterns = {kind: table.format(kind) for kind in (labeler, "split")}
    found = find(root, patterns | {"archive": re.escape(_ARCHIVE), "group": _GROUP}, _GROUP)
    reports: Reports = {}
    # the tree of MIMIC-CXR-JPG looks like that of MIMIC-CXR, but holds images, no reports
    archives, groups = found["archive"][:1], filter(Path.is_dir, found["group"])
    read_from = map(_archived_reports, archives) if archives else map(_tree_reports, groups)
    for path, read in itertools.chain.from_iterable(read_from):
        if match := _REPORT.search(path):
            study = int(match[2])
            if study in reports:
                raise DataError(f"data.root = {root} holds two reports of one study")
            reports[study] = (int(match[1]), read)
    there = {
        f"files/p10/p10000032/s50414267.txt and so on, or {_ARCHIVE}": bool(reports),
        f"mimic-cxr-2.*-{labeler}.csv(.gz)": bool(found[labeler]),
        "mimic-cxr-2.*-split.csv(.gz)": bool(found["split"]),
    }
    require_found(root, "MIMIC-CXR", there, _SOURCE)
    return one_version(found[labeler]), one_version(found["split"]), reports


def _tree_reports(group: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(path, reads it) of all files in the patients' folders of one of p10 ... p19."""

    def unreadable(error: OSError) -> DataError:  # whose words name the file, hence the patient
        return DataError(f"{group} holds a report or folder that cannot be read: {error.strerror}")

    def read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise unreadable(error) from None

    try:
        for patient in (p for p in group.iterdir() if p.is_dir()):
            for name in os.listdir(patient):
                yield f"{patient.name}/{name}", functools.partial(read, patient / name)
    except OSError as error:
        raise unreadable(error) from None


def _archived_reports(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(path, reads it) of all members of the archive, which is never unpacked."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a complete zip archive: {error}") from None

    def read(member: zipfile.ZipInfo) -> bytes:
        try:
            return archive.read(member)
        # RuntimeError: encrypted, or packed in a way that zipfile does not know
        except (EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error):
            raise DataError(f"{path} is damaged: a report in it cannot be read") from None

    for member in archive.infolist():
        yield member.filename, functools.partial(read, member)
