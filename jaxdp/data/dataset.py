# SPDX-License-Identifier: Apache-2.0
"""The one in-memory form of labelled reports, and the checks that every loader's output passes."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

SPLITS = ("train", "validation", "test")
UNKNOWN = -1
"""Label value that stands for "not labelled": left out of the loss and of the metrics."""


class DataError(ValueError):
    """Input data that cannot be used; the message names the file, field or row, never a value."""


def require_choice(field: str, value: str, choices: Collection[str]) -> None:
    """DataError unless the value of a setting is among its choices."""
    if value not in choices:
        raise DataError(f"{field} must be one of {', '.join(choices)}, not {value!r}")


@dataclasses.dataclass(frozen=True, repr=False)
class ReportDataset:
    """Labelled reports. Rows align across all fields; ids and splits may come as lists.

    Attributes:
        name: of the source, for people.
        texts: [n] the text that is classified; private.
        labels: [n, num_labels] int8: 1 positive, 0 negative, UNKNOWN.
        label_names: column names of `labels`.
        report_ids: [n] unique strings; private.
        patient_ids: [n] strings; private.
        splits: [n] strings from SPLITS; no patient is in two of them.
        counts: what the loader read, dropped and repaired, for people. Keys are sentences' subjects
            ("reports without text, dropped"), values numbers.
        label_origin: who or what made the labels; goes into the privacy statement.
        labelled_by: [n] strings, who or what labelled each report, where the source tells; or None.
        patients_known: whether `patient_ids` tell patients apart; if not, every report has its own.
    """

    name: str
    texts: list[str]
    labels: np.ndarray
    label_names: tuple[str, ...]
    report_ids: np.ndarray
    patient_ids: np.ndarray
    splits: np.ndarray
    counts: Mapping[str, int]
    label_origin: str
    labelled_by: np.ndarray | None = None
    patients_known: bool = True

    def __post_init__(self):
        n = len(self.texts)
        if n == 0:
            raise DataError(f"{self.name}: no usable report was found")
        if self.labels.shape != (n, len(self.label_names)):
            raise DataError(
                f"{self.name}: labels have shape {self.labels.shape}, expected "
                f"({n} reports, {len(self.label_names)} labels)"
            )
        for field in ("report_ids", "patient_ids", "splits", "labelled_by"):
            if field == "labelled_by" and self.labelled_by is None:
                continue
            column = np.asarray(getattr(self, field), dtype=str)
            object.__setattr__(self, field, column)
            if len(column) != n:
                raise DataError(f"{self.name}: {field} has {len(column)} rows, not {n}")
        if len(set(self.label_names)) != len(self.label_names):
            raise DataError(f"{self.name}: label names are not unique")
        bad = np.flatnonzero(~np.isin(self.labels, (0, 1, UNKNOWN)).all(axis=1))
        if len(bad):
            raise DataError(f"{self.name}: row {bad[0]} has a label that is not 0, 1 or {UNKNOWN}")
        empty = [i for i, text in enumerate(self.texts) if not text.strip()]
        if empty:
            raise DataError(f"{self.name}: row {empty[0]} has no text")
        unique, first = np.unique(self.report_ids, return_index=True)
        if len(unique) != n:
            row = np.setdiff1d(np.arange(n), first)[0]
            raise DataError(f"{self.name}: row {row} repeats a report id")
        if not np.isin(self.splits, SPLITS).all():
            raise DataError(f"{self.name}: splits must be among {', '.join(SPLITS)}")
        pairs = np.unique(np.stack([self.patient_ids, self.splits]), axis=1)
        shared = pairs.shape[1] - len(np.unique(self.patient_ids))
        if shared:
            raise DataError(f"{self.name}: {shared} patients are in more than one split")

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"ReportDataset({self.name!r}, {len(self)} reports, {len(self.label_names)} labels)"

    def subset(self, split: str) -> "ReportDataset":
        """The reports of one split; DataError if it is empty."""
        rows = np.flatnonzero(self.splits == split)
        if not len(rows):
            raise DataError(f"{self.name}: the {split} split is empty")
        return self.take(rows)

    def take(self, rows: np.ndarray) -> "ReportDataset":
        """The reports at [k] row numbers; DataError if there are none."""
        return dataclasses.replace(
            self,
            texts=[self.texts[i] for i in rows],
            labels=self.labels[rows],
            report_ids=self.report_ids[rows],
            patient_ids=self.patient_ids[rows],
            splits=self.splits[rows],
            labelled_by=None if self.labelled_by is None else self.labelled_by[rows],
        )

    def warnings(self) -> list[str]:
        """What a user should know before training: labels never or always positive, per split."""
        found = []
        for split in SPLITS:
            rows = self.splits == split
            for name, column in zip(self.label_names, self.labels[rows].T, strict=True):
                known = column[column != UNKNOWN]
                if rows.any() and not (known == 1).any():
                    found.append(f"label {name!r} is never positive in the {split} split")
                elif rows.any() and (known == 1).all():
                    found.append(f"label {name!r} is always positive in the {split} split")
        return found


def keyed_fraction(ids: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """[n] ids -> [n] float64 in [0, 1), uniform over ids: BLAKE2 of (purpose, seed, id).

    Each value depends on its own id alone. Whatever is decided by it (a split, which reports are
    kept) is decided for each patient without looking at the others, so that adding or removing a
    patient leaves everyone else's part in training as it was.
    """
    key = f"{purpose}/{seed}".encode()
    digests = b"".join(
        hashlib.blake2b(str(i).encode(), key=key, digest_size=8).digest()
        for i in np.asarray(ids).tolist()
    )
    return (np.frombuffer(digests, "<u8") >> np.uint64(11)) * 2.0**-53


def id_of(row: Any, seen: Counter) -> str:
    """An id for a row that has none: a hash of what it holds, so that whatever is decided by it
    stays as it is when another row is added; and a number, by `seen`, where rows hold the same."""
    content = hashlib.blake2b(repr(row).encode(), digest_size=16).hexdigest()
    seen[content] += 1
    return f"{content}-{seen[content]}"


def assign_splits(
    patient_ids: np.ndarray, seed: int, fractions: tuple[float, float] = (0.8, 0.1)
) -> np.ndarray:
    """Splits patients at random: [n] ids -> [n] names from SPLITS, no patient in two of them.

    A patient's split depends on nothing but its id and the seed (see `keyed_fraction`), so the
    sizes are the fractions only on average.

    Args:
        patient_ids: [n] strings.
        seed: public.
        fractions: chances of train and validation; the rest is test.
    """
    patients, row_patient = np.unique(patient_ids, return_inverse=True)
    draws = keyed_fraction(patients, seed, "split")
    return np.array(SPLITS)[np.searchsorted(np.cumsum(fractions), draws, side="right")][row_patient]


def hold_out_validation(
    splits: np.ndarray, patient_ids: np.ndarray, seed: int, fraction: float
) -> np.ndarray:
    """Moves training patients to validation, for sources without a validation split.

    Each with chance `fraction`, independently of the others (see `keyed_fraction`).
    """
    moved = (splits == "train") & (keyed_fraction(patient_ids, seed, "validation") < fraction)
    return np.where(moved, "validation", splits)
