# SPDX-License-Identifier: Apache-2.0
"""Texts, labels and patients as Python code holds them: lists, NumPy, pandas, `datasets`.

Errors are one line that names the argument and an index in it, never what stands there.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from .dataset import DataError
from .readers import clean_cell, clean_text, repair, undecoded


def texts_of(values: Any, argument: str = "texts") -> list[str]:
    """Texts, cleaned as those of a table.

    Args:
        values: a list, a NumPy array, a pandas Series or DataFrame of one column, or a column of
            `datasets`.
        argument: what the caller calls them.

    Raises:
        DataError: nothing there, more than one column, or an entry that is no text.
    """
    texts = []
    for i, value in enumerate(_one_column(values, argument, "texts")):
        value = "" if _is_missing(value) else value
        if not isinstance(value, str):
            raise DataError(f"{argument}[{i}] is no text but of type {type(value).__name__}")
        if undecoded(value):
            raise DataError(f"{argument}[{i}] holds bytes that are no characters")
        texts.append(clean_text(repair(value, Counter())))
        if not texts[-1]:
            raise DataError(f"{argument}[{i}] has no text")
    return texts


def groups_of(values: Any, count: int) -> np.ndarray:
    """[count] ids as strings; DataError if one is missing or there are not `count`."""
    given = _one_column(values, "groups", "ids")
    ids = ["" if _is_missing(value) else clean_cell(value) for value in given]
    _require_rows(len(ids), count, "groups")
    if "" in ids:
        raise DataError(f"groups[{ids.index('')}] has no id")
    return np.array(ids)


def labels_of(
    values: Any, count: int, names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as ([count, labels] int8 of 0 and 1, their names).

    Args:
        values: a matrix of 0 and 1 (NumPy, lists, or a DataFrame, whose columns name the labels),
            or for each text a list of the names of its labels.
        count: of the texts.
        names: of the labels; lists of names need it: names read off private labels would tell which
            there are. None takes a DataFrame's columns, or counts them: label_0, ...

    Raises:
        DataError: another form, number of rows or of columns, or an entry that is no label.
    """
    if values is None:
        raise DataError("Y requires y to be passed, but the target y is None")
    columns = getattr(values, "columns", None)
    rows = values.to_numpy() if columns is not None else values
    if not isinstance(rows, Sequence | np.ndarray) or isinstance(rows, str):
        raise DataError("Y must be a matrix of 0 and 1, or lists of label names")
    _require_rows(len(rows), count, "Y")
    if any(isinstance(cell, str) for row in rows for cell in row):
        if not names:
            raise DataError("label_names must list all labels where Y holds lists of names")
        return _marked(rows, names, "lists a label that is not in label_names"), tuple(names)
    try:
        table = np.array(rows, dtype=float)
    except (TypeError, ValueError):
        table = np.zeros(0)
    if table.ndim != 2 or not table.shape[1]:
        raise DataError("Y must have one column of 0 and 1 for each label")
    bad = np.flatnonzero(~np.isin(table, (0, 1)).all(axis=1))
    if len(bad):
        raise DataError(f"Y[{bad[0]}] holds a value that is not 0 or 1 (NaN included)")
    if columns is not None:
        columns = list(map(str, columns))
        names = columns if names is None else names
        if missing := [name for name in names if name not in columns]:
            raise DataError(f"Y has no column {missing[0]!r}, which label_names lists")
        table = table[:, [columns.index(name) for name in names]]
    names = names or [f"label_{i}" for i in range(table.shape[1])]
    if len(names) != table.shape[1]:
        raise DataError(f"Y has {table.shape[1]} columns, label_names {len(names)} names")
    return table.astype(np.int8), tuple(names)


def has_one_class(values: Any) -> bool:
    """Whether each text has one class, a name or number, instead of a row of labels."""
    rows = values.to_numpy() if hasattr(values, "to_numpy") else values
    return (
        isinstance(rows, Sequence | np.ndarray)
        and not isinstance(rows, str)
        and any(isinstance(row, str) or not isinstance(row, Sequence | np.ndarray) for row in rows)
    )


def classes_of(
    values: Any, count: int, classes: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The class of each text as ([count, classes] int8 with a single 1 in each row, all classes
    sorted, as scikit-learn has them).

    Args:
        values: a list, a NumPy array or a pandas Series of names or whole numbers.
        count: of the texts.
        classes: all, of the same type.

    Raises:
        DataError: no classes, another number of rows, or an entry that is none of them.
    """
    if classes is None:
        raise DataError(
            "label_names must list all classes: read off Y, they would tell which it has"
        )
    known = np.unique(np.array(list(classes)))
    if known.dtype.kind not in "biuU":
        raise DataError("label_names must be classes: all strings, or all whole numbers")
    rows = _one_column(values, "Y", "classes")
    _require_rows(len(rows), count, "Y")
    for i, value in enumerate(rows):
        if _is_missing(value):
            raise DataError(f"Y[{i}] has no class")
    return _marked([[row] for row in rows], known.tolist(), "is none of label_names"), known


def _marked(rows: Sequence[Any], names: Sequence[Any], problem: str) -> np.ndarray:
    """[rows, names] int8: a 1 for each name in a row; `problem`, of a row with another name."""
    place = {name: i for i, name in enumerate(names)}
    table = np.zeros((len(rows), len(names)), np.int8)
    for i, row in enumerate(rows):
        for name in row:
            if not isinstance(name, Hashable) or name not in place:
                raise DataError(f"Y[{i}] {problem}")
            table[i, place[name]] = 1
    return table


def _one_column(values: Any, argument: str, what: str) -> Any:
    if isinstance(values, str | bytes | dict) or not hasattr(values, "__len__"):
        raise DataError(f"{argument} must be a list or a column of {what}")
    shape = getattr(values, "shape", (len(values),))
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        raise DataError(f"{argument} must be one column of {what}, not of shape {tuple(shape)}")
    if not len(values):
        raise DataError(f"{argument} is empty")
    if hasattr(values, "to_numpy"):
        values = values.to_numpy(dtype=object)
    return values.ravel().tolist() if isinstance(values, np.ndarray) else values


def _require_rows(found: int, count: int, argument: str) -> None:
    if found != count:
        raise DataError(f"{argument} has {found} rows, not {count} as there are texts")


def _is_missing(value: Any) -> bool:
    """None, NaN and pandas' NA."""
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return value is None or type(value).__name__ == "NAType"
