# SPDX-License-Identifier: Apache-2.0
"""PadChest (Bustos et al., 2020): Spanish chest X-ray reports, stemmed, from one CSV table.

The table has one row per image; a report has several, sometimes labelled twice and sometimes filed
under two pseudonyms of one patient.
"""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .dataset import DataError, ReportDataset, assign_splits
from .labels import term_table
from .readers import MISSING, clean_text, read_rows

# label name -> the collection's terms that mean it. The most frequent findings and devices;
# "unchanged", "chronic changes" and the like describe a course, not a finding.
LABELS: Mapping[str, tuple[str, ...]] = {
    "normal": ("normal",),
    "copd_signs": ("COPD signs",),
    "cardiomegaly": ("cardiomegaly",),
    "aortic_elongation": (
        "aortic elongation",
        "supra aortic elongation",
        "descendent aortic elongation",
        "ascendent aortic elongation",
    ),
    "pleural_effusion": (
        "pleural effusion",
        "loculated pleural effusion",
        "loculated fissural effusion",
    ),
    "atelectasis": (
        "atelectasis",
        "laminar atelectasis",
        "lobar atelectasis",
        "segmental atelectasis",
        "atelectasis basal",
        "total atelectasis",
        "round atelectasis",
    ),
    "interstitial_pattern": (
        "interstitial pattern",
        "reticular interstitial pattern",
        "reticulonodular interstitial pattern",
        "ground glass pattern",
    ),
    "central_venous_catheter": (
        "central venous catheter",
        "central venous catheter via jugular vein",
        "central venous catheter via subclavian vein",
        "central venous catheter via umbilical vein",
        "reservoir central venous catheter",
    ),
    "scoliosis": ("scoliosis",),
    "nsg_tube": ("NSG tube",),
    "pneumonia": ("pneumonia", "atypical pneumonia"),
    "alveolar_pattern": ("alveolar pattern",),
    "infiltrates": ("infiltrates",),
    "costophrenic_angle_blunting": ("costophrenic angle blunting",),
    "pleural_thickening": (
        "pleural thickening",
        "apical pleural thickening",
        "calcified pleural thickening",
    ),
    "air_trapping": ("air trapping",),
    "nodule": ("nodule", "multiple nodules"),
    "pacemaker": ("pacemaker", "single chamber device", "dual chamber device"),
}
_METHODS = {"Physician": "physician", "RNN_model": "model"}


@dataclasses.dataclass
class _Report:
    """What the rows of one ReportID say."""

    patient: str
    text: str
    terms: str
    method: str


def load_padchest(
    table: Path,
    *,
    labels: Sequence[str] = tuple(LABELS),
    evaluate_on: str = "all",
    split_seed: int = 0,
) -> ReportDataset:
    """Reads one report per ReportID; what cannot be used is dropped and counted.

    Where a report was labelled twice, the physician's labels count. Pseudonyms that share a report
    are one patient: such rows agree on the day and the year of birth, and to take them for two
    people would promise each of them twice the protection that they get.

    Args:
        table: the CSV file, plain or gzip.
        labels: names from LABELS, or any of the collection's own terms.
        evaluate_on: "physician" keeps only physician-labelled reports in validation and test.
        split_seed: public seed of the 80/10/10 split by patient.

    Raises:
        DataError: missing or damaged table, or a label that no report carries.
    """
    if not Path(table).is_file():
        raise DataError(f"{table} is not a file; expected PadChest's CSV table of labels")
    counts: Counter[str] = Counter()
    reports, same_patient = _read(Path(table), counts)
    counts["pseudonyms merged into another"] = sum(k != v for k, v in same_patient.items())
    with_text = [name for name, r in reports.items() if r.text]
    kept = sorted(name for name in with_text if _terms(reports[name].terms))
    counts["reports without text, dropped"] = len(reports) - len(with_text)
    counts["reports without labels, dropped"] = len(with_text) - len(kept)
    patients = [same_patient[reports[name].patient] for name in kept]
    terms = [_terms(reports[name].terms) for name in kept]
    dataset = ReportDataset(
        name="PadChest",
        texts=[reports[name].text for name in kept],
        labels=term_table(terms, labels, LABELS, "a term"),
        label_names=tuple(labels),
        report_ids=kept,
        patient_ids=patients,
        splits=assign_splits(patients, split_seed),
        counts={},
        label_origin=(
            "radiologists for about a quarter of the reports, for the rest a recurrent network "
            "trained on those, published with the collection"
        ),
        labelled_by=[_METHODS[reports[name].method] for name in kept],
    )
    if evaluate_on == "physician":
        rows = np.flatnonzero((dataset.splits == "train") | (dataset.labelled_by == "physician"))
        counts["model-labelled validation and test reports, dropped"] = len(dataset) - len(rows)
        dataset = dataset.take(rows)
    return dataclasses.replace(dataset, counts=dict(counts))


def _read(table: Path, counts: Counter) -> tuple[dict[str, _Report], dict[str, str]]:
    """ReportID -> report, and pseudonym -> the pseudonym that stands for the patient."""
    reports: dict[str, _Report] = {}
    parent: dict[str, str] = {}  # a forest; the least pseudonym is the root of each tree

    def root(patient: str) -> str:
        while parent.setdefault(patient, patient) != patient:
            patient = parent[patient]
        return patient

    columns = ("ReportID", "PatientID", "Report", "Labels", "MethodLabel")
    for where, (name, patient, text, terms, method) in read_rows(table, columns, counts):
        counts["rows read"] += 1
        if method not in _METHODS:
            raise DataError(f"{where} has a MethodLabel not in {', '.join(_METHODS)}")
        if clean_text(name) == "" or clean_text(patient) == "":
            raise DataError(f"{where} has no ReportID or no PatientID")
        new = _Report(patient, clean_text(text), terms, method)
        report = reports.setdefault(name, new)
        if new.text != report.text:
            raise DataError(f"{where} gives its report another text")
        low, high = sorted((root(patient), root(report.patient)))
        parent[high] = low
        if method == "Physician" and report.method != "Physician":
            reports[name] = dataclasses.replace(report, terms=terms, method=method)
    counts["reports"] = len(reports)
    return reports, {patient: root(patient) for patient in parent}


@functools.cache
def _terms(cell: str) -> frozenset[str]:
    """A cell "['a', ' b']" -> its terms; the model's have stray spaces."""
    found = (term.strip() for term in re.findall(r"'([^']*)'", cell))
    return frozenset(term for term in found if term.lower() not in MISSING)
