# SPDX-License-Identifier: Apache-2.0
"""Anyone's labelled reports: CSV, TSV, JSON, Parquet, Excel, or a `datasets` data set."""

import ast
import itertools
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .dataset import DataError, ReportDataset, assign_splits, hold_out_validation, id_of
from .labels import LabelPolicy, parse_cells, require_carried
from .readers import MISSING, clean_cell
from .table_rows import stream_rows

_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "validate": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


def load_table(
    source: str,
    *,
    labels: Sequence[str],
    one_class: bool = False,
    text_columns: Sequence[str] = ("text",),
    label_column: str | None = None,
    id_column: str | None = None,
    patient_column: str | None = None,
    split_column: str | None = None,
    uncertain: str = "zeros",
    blank: str = "zeros",
    validation_fraction: float = 0.1,
    split_seed: int = 0,
) -> ReportDataset:
    """Reads a table with one row per report, in one pass.

    Splits are those of `split_column`, else those that the data set is stored in. Where that is
    train alone or nothing, they are 80/10/10 at random by patient; where only validation is
    missing, a part of train becomes it.

    Args not said here are the fields of `config.DataConfig`.

    Args:
        source: see `table_rows.stream_rows`.
        labels: names of the labels. Naming them is required: a list read off private reports would
            itself tell what is in them.
        one_class: every report has one of them, by name or by its number from 0, in `label_column`.
        label_column: one column that lists each report's positive labels, as a list of names, as
            "[...]" in JSON or Python, separated by ; or |, or as 0/1 for each of `labels`; names
            not in `labels` are ignored and counted. None: every label has a column of its own.
        id_column: of unique report ids; None makes them of what rows hold.

    Raises:
        DataError: as `stream_rows`, or a cell that cannot be used, which names file and row; or a
            class that training never sees.
    """
    if one_class and label_column is None:
        raise DataError(
            "data.label_column must name the column of classes where data.task is multi-class"
        )
    if not labels or not text_columns:
        raise DataError("data.labels and data.text_columns must name the columns of a table")
    policy = LabelPolicy(uncertain, blank)
    columns = {"text": text_columns, "labels": [label_column] if label_column else labels}
    own = {"id": id_column, "patient": patient_column, "split": split_column}
    columns |= {role: [column] for role, column in own.items() if column is not None}
    counts = Counter({"rows read": 0, "reports without text, dropped": 0})
    rows: dict[str, _Row] = {}
    cells, forms = [], set()
    for where, row in _rows(source, columns, counts):
        if row.id in rows:
            raise DataError(f"{where} repeats a report id")
        rows[row.id] = row
        given = row.labels
        if one_class:
            given = _class(given[0], labels, forms, f"{where} has in {label_column!r}")
        elif label_column:
            given = _listed(given[0], labels, where, counts)
        cells.append(parse_cells(["" if c is None else str(c) for c in given], where))
    table = np.array(cells, float).reshape(len(rows), len(labels))
    counts.update(policy.tally(table))
    if label_column:
        require_carried(table, labels, f"in {source}")
    kind = "one class for each report" if one_class else policy
    patients, splits = [r.patient for r in rows.values()], [r.split for r in rows.values()]
    dataset = ReportDataset(
        name=Path(source).name,
        texts=[row.text for row in rows.values()],
        labels=policy.apply(table),
        label_names=tuple(labels),
        report_ids=list(rows),
        patient_ids=patients,
        splits=_complete(splits, patients, split_seed, validation_fraction),
        counts=dict(counts),
        label_origin=f"as given in the table ({kind})",
        patients_known=patient_column is not None,
    )
    if one_class:
        _require_in_training(dataset, source)
    return dataset


class _Row(NamedTuple):
    """One report; `labels` are cells as they stand, `split` is "" where the table has none."""

    id: str
    patient: str
    split: str
    text: str
    labels: list[Any]


def _rows(
    source: str, columns: Mapping[str, Sequence[str]], counts: Counter
) -> Iterator[tuple[str, _Row]]:
    """(file and row, for errors; the report) of rows that have a text.

    Args:
        source: see `stream_rows`.
        columns: role (a field of `_Row`) -> its columns. Where ids have none, see `id_of`.
        counts: of rows read and dropped.
    """
    wanted = [column for names in columns.values() for column in names]
    seen = Counter()
    for part, number, values, problem in stream_rows(source, wanted, counts):
        where = f"{source}{f' ({part})' if part else ''}: row {number}"
        if problem:
            raise DataError(f"{where} {problem}")
        counts["rows read"] += 1
        left = iter(values)
        cells = {role: list(itertools.islice(left, len(names))) for role, names in columns.items()}
        labels, texts = cells.pop("labels"), [_text(value, where) for value in cells.pop("text")]
        if not any(texts):
            counts["reports without text, dropped"] += 1
            continue
        own = {role: _text(value, where) for role, (value,) in cells.items()}
        if "" in own.values():
            raise DataError(f"{where} has an empty id, patient or split")
        split, text = own.get("split", part).lower(), "\n".join(filter(None, texts))
        if split and split not in _SPLITS:
            raise DataError(f"{where} has a split that is not one of {', '.join(_SPLITS)}")
        report = own.get("id") or id_of((own, text, labels), seen)
        yield where, _Row(report, own.get("patient", report), _SPLITS.get(split, ""), text, labels)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str | int | float | None):
        raise DataError(f"{where} has a text, id, patient or split that is no string or number")
    return clean_cell(value)


def _listed(value: Any, labels: Sequence[str], where: str, counts: Counter) -> list[Any]:
    """A list of positive labels, or of 0/1 -> one cell per label."""
    if isinstance(value, str):
        value = value.strip()
        try:
            with warnings.catch_warnings(action="ignore"):  # they quote the cell
                value = ast.literal_eval(value) if value[:1] == "[" else re.split("[;|]", value)
        except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
            value = 0  # no list
    names = [] if value is None or value != value else value
    if not isinstance(names, list):
        raise DataError(f"{where} has a label list that cannot be read")
    stated = [v for v in names if v is not None]
    if stated and all(isinstance(v, int | float) for v in stated):
        if len(names) != len(labels):
            raise DataError(f"{where} has {len(names)} numbers as labels, not {len(labels)}")
        return names
    positive = {str(name).strip() for name in stated} - {""}
    if not positive:
        counts["reports that list no label, taken as negative in all"] += 1
    counts["labels not in data.labels, ignored"] += len(positive - set(labels))
    return [int(label in positive) for label in labels]


def _class(value: Any, labels: Sequence[str], forms: set[str], place: str) -> list[int]:
    """The class that a cell names, or numbers from 0 -> a 1 among zeros; `forms` of all cells."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as integers come back from a column with gaps
    name = "" if value is None or value != value else " ".join(str(value).split())
    number = name.removesuffix(".0")
    if name in labels:
        forms.add("names")
        chosen = labels.index(name)
    elif name.lower() in MISSING:
        raise DataError(f"{place} no class")
    elif number.isdecimal() and not any(label.isdecimal() for label in labels):
        forms.add("numbers")
        chosen = int(number)
    else:
        chosen = len(labels)
    if chosen >= len(labels):
        raise DataError(f"{place} neither one of data.labels nor its number, counted from 0")
    if len(forms) > 1:
        raise DataError(f"{place} another form than rows before: names, or numbers, not both")
    return [int(i == chosen) for i in range(len(labels))]


def _require_in_training(dataset: ReportDataset, source: str) -> None:
    trained = dataset.labels[dataset.splits == "train"].any(axis=0)
    for split in ("validation", "test"):
        unseen = dataset.labels[dataset.splits == split].any(axis=0) & ~trained
        if unseen.any():
            name = dataset.label_names[unseen.argmax()]
            raise DataError(f"{source}: class {name!r} is in the {split} split and not in training")


def _complete(
    splits: list[str], patients: list[str], seed: int, validation_fraction: float
) -> np.ndarray:
    """Splits where there are none, validation where there is none."""
    if {"", "train"}.issuperset(splits):
        return assign_splits(patients, seed)
    given = np.array(splits, dtype="U10")
    if "validation" in splits:
        return given
    return hold_out_validation(given, patients, seed, validation_fraction)
