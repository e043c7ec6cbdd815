# SPDX-License-Identifier: Apache-2.0
"""What stands in a label cell -> 1, 0 or UNKNOWN."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from .dataset import UNKNOWN, DataError
from .readers import MISSING

UNCERTAIN, BLANK = -1.0, np.nan
"""Values of cells, beside 0 and 1: "possibly" (as the CheXpert labeler writes it), and empty."""

_MEANING = {"zeros": 0, "ones": 1, "ignore": UNKNOWN}
_NAME = {"zeros": "negative", "ones": "positive", "ignore": "unknown"}


@dataclasses.dataclass(frozen=True)
class LabelPolicy:
    """What becomes of uncertain and of blank labels: "zeros", "ones", or "ignore".

    "ignore" leaves the label out of the loss and of the metrics. By default both are negative:
    a report that does not mention a finding, or only wonders about it, does not diagnose it. The
    CheXpert authors call this U-Zeros; the study's abstract states no policy.
    """

    uncertain: str = "zeros"
    blank: str = "zeros"

    def __str__(self) -> str:
        return f"uncertain: {self.uncertain}, blank: {self.blank}"

    def apply(self, cells: np.ndarray) -> np.ndarray:
        """[...] float cells as `parse_cells` gives them -> [...] int8."""
        result = np.where(np.isnan(cells), _MEANING[self.blank], cells)
        return np.where(cells == UNCERTAIN, _MEANING[self.uncertain], result).astype(np.int8)

    def tally(self, cells: np.ndarray) -> dict[str, int]:
        """How many cells are uncertain or blank, and what `apply` makes of them; for `counts`."""
        found = {
            f"uncertain labels, taken as {_NAME[self.uncertain]}": int((cells == UNCERTAIN).sum()),
            f"blank labels, taken as {_NAME[self.blank]}": int(np.isnan(cells).sum()),
        }
        return {what: number for what, number in found.items() if number}


def parse_cells(values: Sequence[str], where: str) -> list[float]:
    """Label cells as numbers: 1, 0, UNCERTAIN or BLANK.

    Args:
        values: as they stand in a file; "1", "1.0", "True", "yes" and "Positive" are the same.
        where: file and row, for the error.

    Raises:
        DataError: a cell is something else.
    """
    cells = [_CELL.get(value.strip().lower()) for value in values]
    if None in cells:
        raise DataError(
            f"{where}: label {cells.index(None) + 1} of {len(cells)} is not 1, yes, true or "
            "positive, nor 0, no, false or negative, nor -1 (uncertain) or blank"
        )
    return cells


def term_table(
    found: Sequence[Collection[str]],
    labels: Sequence[str],
    terms: Mapping[str, Collection[str]],
    what: str,
) -> np.ndarray:
    """[reports, labels] int8: 1 where a report has one of the terms that a label stands for.

    Args:
        found: the terms of each report.
        labels: keys of `terms`, or terms.
        terms: label -> those that it stands for.
        what: terms are called.

    Raises:
        DataError: no report carries a label.
    """
    wanted = [frozenset(terms.get(label, (label,))) for label in labels]
    rows = [[not its.isdisjoint(given) for its in wanted] for given in found]
    table = np.array(rows, np.int8).reshape(len(found), len(labels))
    require_carried(table, labels, f"as {what}")
    return table


def require_carried(table: np.ndarray, labels: Collection[str], where: str) -> None:
    """DataError for a label that no report carries, which is most likely mistyped."""
    for label, column in zip(labels, table.T, strict=True):
        if len(column) and not column.any():
            raise DataError(f"data.labels: no report carries {label!r} {where}")


def with_labels(
    reports: Mapping[Any, Any], labels: Mapping[Any, Any], what: str, counts: Counter
) -> list[Any]:
    """Sorted keys of reports that have labels; the others are counted, under `what` they are."""
    counts[f"labelled {what} without a report"] = len(labels.keys() - reports.keys())
    counts["reports without labels, dropped"] = len(reports.keys() - labels.keys())
    return sorted(labels.keys() & reports.keys())


_CELL = (
    dict.fromkeys(("1", "1.0", "yes", "true", "positive"), 1.0)
    | dict.fromkeys(("0", "0.0", "no", "false", "negative"), 0.0)
    | dict.fromkeys(("-1", "-1.0"), UNCERTAIN)
    | dict.fromkeys(MISSING, BLANK)
)
