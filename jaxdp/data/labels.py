# SPDX-License-Identifier: Apache-2.0
"""What stands in a label cell -> 1, 0 or UNKNOWN."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .dataset import UNKNOWN, DataError
from .readers import MISSING

UNCERTAIN, BLANK = -1.0, np.nan
"""Values of cells, beside 0 and 1: "possibly" (as the CheXpert labeler writes it), and empty."""

_MEANING = {"zeros": 0, "ones": 1, "ignore": UNKNOWN}


@dataclasses.dataclass(frozen=True)
class LabelPolicy:
    """What becomes of uncertain and of blank labels: "zeros", "ones", or "ignore".

    "ignore" leaves the label out of the loss and of the metrics. By default both are negative:
    a report that does not mention a finding, or only wonders about it, does not diagnose it. The
    CheXpert authors call this U-Zeros; the study's abstract states no policy.
    """

    uncertain: str = "zeros"
    blank: str = "zeros"

    def __post_init__(self):
        for field in ("uncertain", "blank"):
            if getattr(self, field) not in _MEANING:
                raise DataError(
                    f"data.{field} must be one of {', '.join(_MEANING)}, "
                    f"not {getattr(self, field)!r}"
                )

    def __str__(self) -> str:
        return f"uncertain: {self.uncertain}, blank: {self.blank}"

    def apply(self, cells: np.ndarray) -> np.ndarray:
        """[...] float cells as `parse_cells` gives them -> [...] int8."""
        result = np.where(np.isnan(cells), _MEANING[self.blank], cells)
        return np.where(cells == UNCERTAIN, _MEANING[self.uncertain], result).astype(np.int8)


def parse_cells(values: Sequence[str], where: str) -> list[float]:
    """Label cells as numbers: 1, 0, UNCERTAIN or BLANK.

    Args:
        values: as they stand in a file; "1", "1.0" and "True" are the same.
        where: file and row, for the error.

    Raises:
        DataError: a cell is something else.
    """
    try:
        return [_CELL[value] for value in values]  # nearly always
    except KeyError:
        pass
    cells = [_CELL.get(value.strip().lower()) for value in values]
    if None in cells:
        raise DataError(
            f"{where}: label {cells.index(None) + 1} of {len(cells)} is not 0, 1, -1 or blank"
        )
    return cells


_CELL = (
    {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}
    | {"-1": UNCERTAIN, "-1.0": UNCERTAIN}
    | dict.fromkeys(MISSING, BLANK)
)
