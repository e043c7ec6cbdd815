# SPDX-License-Identifier: Apache-2.0
"""Labels from a larger model, joined to reports by id."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np

from .dataset import UNKNOWN, DataError, ReportDataset
from .labels import LabelPolicy, parse_cells
from .readers import clean_text, read_rows


def apply_teacher(
    dataset: ReportDataset,
    path: Path | str,
    *,
    origin: str,
    mode: str = "replace",
    id_column: str = "study_id",
    max_missing: int = 0,
    max_surplus: int = 0,
    uncertain: str = "zeros",
    blank: str = "zeros",
) -> ReportDataset:
    """The reports with labels from a CSV or TSV table that has one row per report.

    The table needs a column for each of the dataset's labels, by exact name. Its ids are the
    dataset's report ids; MIMIC-CXR's may come as the bare study number.

    Args not said here are the fields of `config.TeacherConfig`.

    Args:
        path: .csv or .tsv, plain or gzip.
        mode: "replace" takes all labels from the table, and drops reports that it lacks; "fill"
            takes only those that the dataset has not (UNKNOWN), and keeps reports that it lacks.
        uncertain, blank: what becomes of such labels in the table, see `LabelPolicy`.

    Raises:
        DataError: missing, damaged or contradictory table, too many missing or surplus ids, or no
            origin.
    """
    if not origin.strip():
        raise DataError("teacher.origin must say who made the labels")
    policy = LabelPolicy(uncertain, blank)
    row_of = {name: i for i, name in enumerate(dataset.report_ids.tolist())}
    cells = np.zeros(dataset.labels.shape)
    given = np.zeros(len(dataset), bool)
    counts = Counter(dataset.counts)
    seen: set[str] = set()
    for where, (name, *values) in read_rows(Path(path), (id_column, *dataset.label_names), counts):
        name = clean_text(name).removesuffix(".0")  # as programs write ids with gaps among them
        # MIMIC-CXR's ids are s50414267, in tables 50414267
        key = name if name in row_of else f"s{name}"
        if key in seen:
            raise DataError(f"{where} repeats an id")
        seen.add(key)
        parsed = parse_cells(values, where)
        if key in row_of:
            cells[row_of[key]] = parsed
            given[row_of[key]] = True
    missing, surplus = int((~given).sum()), len(seen) - int(given.sum())
    for what, number, field, limit in (
        ("reports without teacher labels", missing, "max_missing", max_missing),
        ("teacher labels without a report", surplus, "max_surplus", max_surplus),
    ):
        counts[what] = number
        if number > limit:
            raise DataError(f"{path}: {number} {what}, more than teacher.{field} = {limit}")
    counts.update({f"teacher's {what}": n for what, n in policy.tally(cells[given]).items()})
    taught, origin = policy.apply(cells), f"{origin} ({policy})"
    if mode == "replace":
        replaced = dataclasses.replace(
            dataset,
            labels=taught,
            counts=dict(counts),
            label_origin=f"teacher: {origin}",
            labelled_by=np.full(len(dataset), "teacher"),
        )
        return replaced.take(np.flatnonzero(given))
    fill = (dataset.labels == UNKNOWN) & given[:, None]
    counts["labels filled by the teacher"] = int(fill.sum())
    return dataclasses.replace(
        dataset,
        labels=np.where(fill, taught, dataset.labels),
        counts=dict(counts),
        label_origin=f"{dataset.label_origin}; where it gives none, teacher: {origin}",
    )
