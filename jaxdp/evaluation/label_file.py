# SPDX-License-Identifier: Apache-2.0
"""Labels for a file of new reports, in constant memory."""

import contextlib
import csv
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from jaxdp.data.dataset import DataError
from jaxdp.data.readers import clean_text
from jaxdp.data.table_rows import stream_rows
from jaxdp.models.tasks import DECISION_THRESHOLD

from .predict import ReleasedClassifier

WRITERS = (".csv", ".jsonl", ".parquet")  # how the name of a file that is written may end
CHUNK = 2048  # reports held in memory at once


@dataclasses.dataclass(frozen=True)
class Row:
    """One input row: a text, or what is wrong with it."""

    number: int  # of the data row, from 1; empty lines are none
    text: str = dataclasses.field(repr=False)
    problem: str | None = None
    id: str = dataclasses.field(default="", repr=False)


def read_rows(path: Path, text_column: str, id_column: str | None = None) -> Iterator[Row]:
    """Rows of a file in one of `table_rows.FORMATS`, one at a time.

    A row without usable text is yielded with its problem; texts are never part of a message.

    Raises:
        DataError: missing or damaged file, unknown type, or no such column.
    """
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist, or is no file")
    columns = (text_column,) if id_column is None else (text_column, id_column)
    rows = stream_rows(str(path), columns, Counter())
    for number, (_, _, values, problem) in enumerate(rows, start=1):
        text, name = ("", "") if problem else (*values, "")[:2]
        if not isinstance(text, str | None):
            text, problem = "", f"has no string in {text_column!r}"
        elif not isinstance(name, str | int):
            name, problem = "", f"has no string or integer in {id_column!r}"
        text = clean_text(text)
        yield Row(number, text, problem or (None if text else "has no text"), str(name))


def label_file(
    classifier: ReleasedClassifier,
    source: Path,
    target: Path,
    *,
    text_column: str,
    skip_bad_rows: bool,
    id_column: str | None = None,
    evidence: bool = False,
    thresholds: Mapping[str, float] | None = None,
) -> tuple[int, list[Row]]:
    """Labels every row of `source`: its number, the id if `id_column` names one, then decision and
    probability of each label, and with `evidence` the sentence that each label found has read.
    Where a text has one class, the decision is its name, in a column `class`, and evidence has one
    column, too.

    `target` is in the format that its name ends in, one of WRITERS. It appears when all rows are
    done; memory does not grow with their number.

    Args:
        thresholds: label -> the least probability that is a 1, where that is not 0.5.

    Returns:
        How many rows were labelled, and those that were not.

    Raises:
        DataError: unreadable input; an output of another type; an id column or a label that is
            called like another column; a threshold for no label, not in (0, 1], or where a text has
            one class; or a bad row, unless they are to be skipped.
    """
    if target.suffix not in WRITERS:
        raise DataError(f"{target} must end in {', '.join(WRITERS)}")
    names, one_class = classifier.labels, classifier.task.one_class
    if thresholds and one_class:
        raise DataError("thresholds: there are none where a text has one class, the likeliest")
    least = _thresholds(thresholds or {}, names)
    columns = [("row", pyarrow.int64())]
    columns += [] if id_column is None else [(id_column, pyarrow.string())]
    told = [("class", pyarrow.string())] if one_class else [(n, pyarrow.int64()) for n in names]
    columns += told + [(f"probability_{name}", pyarrow.float64()) for name in names]
    if evidence:
        read_by = ["evidence"] if one_class else [f"evidence_{name}" for name in names]
        columns += [(name, pyarrow.string()) for name in read_by]
    header = [name for name, _ in columns]
    twice = [name for name, times in Counter(header).items() if times > 1]
    if id_column in twice:
        raise DataError(f"--id_column {id_column!r} is the name of another column of the output")
    if twice:
        raise DataError(
            f"two columns of the output would be called {twice[0]!r}; rename the label in "
            "label_names of the adapter's jaxdp.json"
        )
    scratch = target.with_name(f".{target.name}.tmp")
    labelled, skipped = 0, []
    try:
        with _writer(scratch, target.suffix, pyarrow.schema(columns)) as write:
            rows = read_rows(source, text_column, id_column)
            while chunk := list(itertools.islice(rows, CHUNK)):
                bad = [row for row in chunk if row.problem]
                if bad and not skip_bad_rows:
                    raise DataError(f"{source}: row {bad[0].number} {bad[0].problem}")
                skipped += bad
                good = [row for row in chunk if not row.problem]
                if good:
                    cells = [[row.number for row in good]]
                    cells += [] if id_column is None else [[row.id for row in good]]
                    cells += _answers(classifier, [row.text for row in good], least, evidence)
                    write([dict(zip(header, row, strict=True)) for row in zip(*cells, strict=True)])
                    labelled += len(good)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return labelled, skipped


def _answers(
    classifier: ReleasedClassifier, texts: list[str], least: np.ndarray, evidence: bool
) -> list[list[Any]]:
    """Columns of decisions, probabilities and, if asked for, evidence, each [n]."""
    task, probabilities = classifier.task, classifier.predict_proba(texts)
    decided = task.decide(probabilities) if task.one_class else probabilities >= least
    told = task.answers(decided, np.array(classifier.labels))
    columns = [*([told] if task.one_class else told.T), *probabilities.T]
    if evidence:
        read = np.where(decided, np.array(classifier.evidence(texts), object), None)
        columns += [read[decided]] if task.one_class else [*read.T]
    return [column.tolist() for column in columns]


def _thresholds(given: Mapping[str, Any], labels: tuple[str, ...]) -> np.ndarray:
    """[labels] the least probability that is a 1."""
    if not isinstance(given, Mapping):
        raise DataError("thresholds must be an object: label -> number")
    for label, value in given.items():
        if label not in labels:
            raise DataError(f"thresholds: {label!r} is no label; labels are {', '.join(labels)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= 1:
            raise DataError(f"thresholds: of {label!r} must be a number in (0, 1]")
    return np.array([given.get(label, DECISION_THRESHOLD) for label in labels])


@contextlib.contextmanager
def _writer(
    path: Path, suffix: str, schema: pyarrow.Schema
) -> Iterator[Callable[[list[dict[str, Any]]], Any]]:
    """Gives what writes rows to a file in the format of that suffix."""
    if suffix == ".parquet":
        with pyarrow.parquet.ParquetWriter(path, schema) as table:
            yield lambda rows: table.write_table(pyarrow.Table.from_pylist(rows, schema))
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            table = csv.DictWriter(file, schema.names)
            table.writeheader()
            yield table.writerows
        else:
            yield lambda rows: file.writelines(json.dumps(row) + "\n" for row in rows)
