# SPDX-License-Identifier: Apache-2.0
"""Small SYNTHETIC reports in every source's file format, quirks included. Nothing here is real."""

import csv
import gzip
import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from jaxdp.data.dataset import ReportDataset

CANARY = "ZEBRAPHRASE"
"""Stands for report text that must never be printed."""


def make_dataset(patients=("a", "a", "b", "c"), splits=None, **changes) -> ReportDataset:
    """A valid ReportDataset with one report per entry of `patients`."""
    n = len(patients)
    fields = dict(
        name="synthetic",
        texts=[f"report number {i} {CANARY}" for i in range(n)],
        labels=np.array([[i % 2, 1 - i % 2] for i in range(n)], np.int8),
        label_names=("even", "odd"),
        report_ids=np.array([f"r{i}" for i in range(n)]),
        patient_ids=np.array(list(patients), dtype=str),
        splits=np.array(["train"] * n if splits is None else splits),
        counts={},
        label_origin="made up",
    )
    return ReportDataset(**(fields | changes))


def answers(n: int = 300, seed: int = 0):
    """(labels with unknowns, probabilities that know something of them)."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 0, 1], (n, 4), p=[0.1, 0.6, 0.3]).astype(np.int8)
    labels[:, 3] = 0  # a label that never occurs
    return labels, np.clip(0.4 * labels + 0.3 + 0.2 * rng.normal(size=labels.shape), 0, 1)


def openi_xml(
    findings: str | None = "The heart is normal.",
    impression: str | None = "No acute disease.",
    majors: tuple[str, ...] = ("normal",),
    patient: str | None = "1",
) -> bytes:
    """One Open-I report; None leaves the element out or its text empty."""
    pmc = "" if patient is None else f'<pmcId id="{patient}"/>'
    sections = "".join(
        f'<AbstractText Label="{label}">{text or ""}</AbstractText>'
        for label, text in (("FINDINGS", findings), ("IMPRESSION", impression))
    )
    mesh = "".join(f"<major>{m}</major>" for m in majors)
    return (
        f"<eCitation>{pmc}<MedlineCitation><Article><Abstract>{sections}</Abstract></Article>"
        f"</MedlineCitation><MeSH>{mesh}</MeSH></eCitation>"
    ).encode()


def write_openi(path: Path, members: dict[str, bytes]) -> Path:
    """A tgz with the given members, name -> content."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


MIMIC_LABELS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
).split(",")


def mimic_report(impression: str | None = None, findings: str | None = None, tail: str = "") -> str:
    """A report as MIMIC-CXR writes it: one space before headers, de-identified by ___."""
    text = " " * 33 + "FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n"
    text += " INDICATION:  ___ year old woman with cough\n \n COMPARISON:  ___\n"
    if findings is not None:
        text += f" \n FINDINGS: \n \n {findings}\n"
    if impression is not None:
        text += f" \n IMPRESSION: \n \n {impression}\n"
    return text + tail


class MimicFiles:
    """Writes a synthetic MIMIC-CXR; every method returns self."""

    def __init__(self, root: Path, folder: str = "mimic-cxr/2.0.0"):
        self.root, self.files = root, root / folder / "files"
        self.jpg = root / "mimic-cxr-jpg" / "2.0.0"
        self.jpg.mkdir(parents=True)
        self.studies: dict[int, tuple[int, str]] = {}

    def report(self, study: int, patient: int, content: str | bytes) -> "MimicFiles":
        folder = self.files / f"p{patient}"[:3] / f"p{patient}"
        folder.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        (folder / f"s{study}.txt").write_bytes(content)
        # images lie beside the reports, and in MIMIC-CXR-JPG in a tree of the same shape
        for images in (folder, self.jpg / "files" / folder.relative_to(self.files)):
            (images / f"s{study}").mkdir(parents=True)
            (images / f"s{study}" / "0a1b.dcm").write_bytes(b"\x00")
        return self

    def labels(self, rows, *, kind="chexpert", version="2.0.0", header=None, pack=True):
        """rows: (subject, study, [14 cells]) or (subject, study, {label: cell})."""
        lines = [header or ",".join(["subject_id", "study_id", *MIMIC_LABELS])]
        for subject, study, cells in rows:
            if isinstance(cells, dict):
                cells = [cells.get(name, "") for name in MIMIC_LABELS]
            lines.append(",".join(map(str, [subject, study, *cells])))
        return self._write(f"mimic-cxr-{version}-{kind}.csv", lines, pack)

    def splits(self, rows, *, version="2.0.0", pack=True):
        """rows: (study, subject, split); every study has two images, as most do."""
        lines = ["dicom_id,study_id,subject_id,split"]
        for study, subject, split in rows:
            lines += [f"{study}-{image},{study},{subject},{split}" for image in "ab"]
        return self._write(f"mimic-cxr-{version}-split.csv", lines, pack)

    def _write(self, name: str, lines: list[str], pack: bool) -> "MimicFiles":
        content = ("\n".join(lines) + "\n").encode()
        if pack:
            (self.jpg / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (self.jpg / name).write_bytes(content)
        return self

    def archive(self, keep_tree: bool = False) -> "MimicFiles":
        """Packs the report tree into mimic-cxr-reports.zip."""
        with zipfile.ZipFile(self.files.parent / "mimic-cxr-reports.zip", "w") as archive:
            for path in self.files.rglob("*.txt"):
                archive.write(path, path.relative_to(self.files.parent))
                archive.writestr(f"__MACOSX/{path.parent}/._{path.name}", "not a report")
        if not keep_tree:
            shutil.rmtree(self.files)
        return self


def write_mimic(root: Path) -> MimicFiles:
    """Six studies of four patients that can be loaded, and one each of what is dropped."""
    mimic = MimicFiles(root)
    none = {}
    plan = [
        # study, patient, split, report, label cells
        (50000001, 10000001, "train", mimic_report("I1.", "F1."), {"Edema": "1.0"}),
        (50000002, 10000001, "train", mimic_report("I2."), {"Edema": "-1.0", "Fracture": "0.0"}),
        (50000003, 11000002, "train", mimic_report(None, "F3."), {"No Finding": "1.0"}),
        (50000004, 12000003, "validate", mimic_report("I4."), none),
        (50000005, 12000003, "validate", mimic_report(tail=" \n Clear lungs.\n"), {"Edema": 1}),
        (50000006, 19000004, "test", mimic_report("I6."), {"Pneumonia": "-1"}),
    ]
    for study, patient, _, content, _ in plan:
        mimic.report(study, patient, content)
    mimic.report(50000007, 10000001, mimic_report("No label row."))
    mimic.report(50000008, 10000001, mimic_report("No split row."))
    mimic.report(50000009, 10000001, "")
    mimic.labels(
        [(patient, study, cells) for study, patient, _, _, cells in plan]
        + [(10000001, study, none) for study in (50000008, 50000009, 50000010)]
    )
    mimic.splits(
        [(study, patient, split) for study, patient, split, _, _ in plan]
        + [(study, 10000001, "train") for study in (50000007, 50000009, 50000010)]
    )
    # other tables that are published beside those that are read
    others = ("metadata.csv.gz", "test-set-labeled.csv", "sectioned.csv")
    for path in [mimic.jpg / f"mimic-cxr-2.0.0-{name}" for name in others]:
        path.write_bytes(gzip.compress(b"study_id,subject_id\n50000099,10000001\n"))
    for name in ("cxr-record-list.csv.gz", "cxr-study-list.csv.gz"):
        (mimic.files.parent / name).write_bytes(gzip.compress(b"study_id,path\n50000099,files\n"))
    return mimic


CTRATE_LABELS = (
    "Medical material,Arterial wall calcification,Cardiomegaly,Pericardial effusion,"
    "Coronary artery wall calcification,Hiatal hernia,Lymphadenopathy,Emphysema,Atelectasis,"
    "Lung nodule,Lung opacity,Pulmonary fibrotic sequela,Pleural effusion,"
    "Mosaic attenuation pattern,Peribronchial thickening,Consolidation,Bronchiectasis,"
    "Interlobular septal thickening"
).split(",")
CTRATE_PATHS = {
    ("train", "reports"): "dataset/radiology_text_reports/train_reports.csv",
    ("valid", "reports"): "dataset/radiology_text_reports/validation_reports.csv",
    ("train", "labels"): "dataset/multi_abnormality_labels/train_predicted_labels.csv",
    ("valid", "labels"): "dataset/multi_abnormality_labels/valid_predicted_labels.csv",
}


def write_table(path: Path, header, rows, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """A CSV file with every field that needs it quoted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
    path.write_bytes(stream.getvalue().encode(encoding))
    return path


def write_ctrate(root: Path, reports: dict, labels: dict) -> Path:
    """The four tables; {volume: (findings, impression)} and {volume: positive labels}."""
    for part in ("train", "valid"):
        write_table(
            root / CTRATE_PATHS[part, "reports"],
            "VolumeName ClinicalInformation_EN Technique_EN Findings_EN Impressions_EN".split(),
            [
                [f"{volume}.nii.gz", "Not given.", "CT, with contrast", *sections]
                for volume, sections in reports.items()
                if volume.startswith(part)
            ],
        )
        write_table(
            root / CTRATE_PATHS[part, "labels"],
            ["VolumeName", *CTRATE_LABELS],
            [
                [f"{volume}.nii.gz", *(int(name in positive) for name in CTRATE_LABELS)]
                for volume, positive in labels.items()
                if volume.startswith(part)
            ],
        )
    return root


def write_padchest(path: Path, rows) -> Path:
    """PadChest's table; rows: (ReportID, PatientID, Report, Labels, MethodLabel)."""
    header = ["", "ImageID", "PatientID", "ReportID", "Report", "MethodLabel", "Labels"]
    lines = [
        [i, f"{i}.png", patient, report, text, method, labels]
        for i, (report, patient, text, labels, method) in enumerate(rows)
    ]
    write_table(path, header, lines)
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path
