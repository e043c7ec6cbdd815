# SPDX-License-Identifier: Apache-2.0
"""Small SYNTHETIC reports in every source's file format, quirks included. Nothing here is real."""

import io
import tarfile
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
