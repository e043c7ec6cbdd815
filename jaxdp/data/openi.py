# SPDX-License-Identifier: Apache-2.0
"""Open-I: the Indiana University chest X-ray reports (Demner-Fushman et al., 2016).

3,955 XML reports with MeSH headings in `NLMCXR_reports.tgz`, CC BY-NC-ND. The archive is read in
place: nothing in it is ever written to disk.
"""

import tarfile
import xml.etree.ElementTree as ElementTree
import xml.parsers.expat
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from .dataset import DataError, ReportDataset, assign_splits, require_choice
from .labels import term_table

# label name -> major MeSH heading (the part before the first "/"), most frequent first. These are
# the most frequent headings that name a finding or device rather than a body site or descriptor.
LABELS = {
    "normal": "normal",
    "opacity": "Opacity",
    "cardiomegaly": "Cardiomegaly",
    "atelectasis": "Pulmonary Atelectasis",
    "calcinosis": "Calcinosis",
    "calcified_granuloma": "Calcified Granuloma",
    "cicatrix": "Cicatrix",
    "pleural_effusion": "Pleural Effusion",
    "atherosclerosis": "Atherosclerosis",
    "indwelling_catheters": "Catheters, Indwelling",
    "airspace_disease": "Airspace Disease",
    "deformity": "Deformity",
    "granulomatous_disease": "Granulomatous Disease",
    "nodule": "Nodule",
}

SECTIONS = {
    "findings+impression": ("FINDINGS", "IMPRESSION"),
    "findings": ("FINDINGS",),
    "impression": ("IMPRESSION",),
}
"""config.data.text -> the sections that are joined."""


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every XML file in the archive, in a fixed order."""
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise DataError(f"{archive}: refusing an archive with an unsafe member path")
                if member.isfile() and path.suffix == ".xml":
                    yield path.stem, tar.extractfile(member).read()
            # gzip keeps its checksum at the end, behind what tar needs.
            while tar.fileobj.read(1 << 20):
                pass
    except FileNotFoundError:
        raise DataError(
            f"{archive} does not exist; expected the Open-I archive NLMCXR_reports.tgz"
        ) from None
    except (tarfile.TarError, EOFError, OSError, zlib.error):
        raise DataError(f"{archive} is not a complete tar archive") from None


def _parse(content: bytes, where: str) -> tuple[str | None, dict[str, str], set[str]]:
    """One report: (patient id, section -> text, major MeSH headings)."""
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        # not the error's own words, which can quote the report, nor the file's name, which is an id
        problem = xml.parsers.expat.ErrorString(error.code)
        raise DataError(f"{where}, line {error.position[0]}: {problem}") from None
    patient = root.find("pmcId")
    sections = {e.get("Label"): (e.text or "").strip() for e in root.iter("AbstractText")}
    headings = {(e.text or "").split("/")[0].strip() for e in root.iter("major")}
    return (None if patient is None else patient.get("id")), sections, headings


def load_openi(
    archive: Path,
    *,
    text: str = "findings+impression",
    labels: Sequence[str] = tuple(LABELS),
    split_seed: int = 0,
) -> ReportDataset:
    """Reads the collection; reports whose chosen sections are empty are dropped and counted.

    Args:
        archive: NLMCXR_reports.tgz, or the folder that it is in.
        text: a key of SECTIONS.
        labels: names from LABELS, or any major MeSH headings as spelled in the collection.
        split_seed: public seed of the 80/10/10 split by patient.

    Raises:
        DataError: missing, damaged or unsafe archive, no usable report, unknown `text`, or a
            label that no report carries.
    """
    require_choice("data.text", text, SECTIONS)
    archive = Path(archive)
    if archive.is_dir():
        archive = archive / "NLMCXR_reports.tgz"
    texts, headings, ids, patients = [], [], [], []
    counts = Counter({"reports read": 0, "reports without text, dropped": 0})
    for name, content in _members(archive):
        counts["reports read"] += 1
        where = f"{archive}: XML file {counts['reports read']}"
        patient, sections, majors = _parse(content, where)
        joined = "\n".join(filter(None, (sections.get(s, "") for s in SECTIONS[text])))
        if not joined:
            counts["reports without text, dropped"] += 1
            continue
        texts.append(joined)
        headings.append(majors)
        ids.append(name)
        patients.append(name if patient is None else patient)
    terms = {label: (heading,) for label, heading in LABELS.items()}
    return ReportDataset(
        name="Open-I",
        texts=texts,
        labels=term_table(headings, labels, terms, "a major MeSH heading"),
        label_names=tuple(labels),
        report_ids=ids,
        patient_ids=patients,
        splits=assign_splits(patients, split_seed),
        counts=dict(counts),
        label_origin="MeSH headings assigned by human indexers, published with the collection",
    )
