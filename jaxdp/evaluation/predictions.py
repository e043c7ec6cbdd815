# SPDX-License-Identifier: Apache-2.0
"""A model's answers for the test reports, kept for statistics: numbers only, no text and no id."""

import dataclasses
import io
import zipfile
import zlib
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxdp.data.dataset import DataError, ReportDataset

from .metrics import classification_metrics


@dataclasses.dataclass(frozen=True, repr=False)
class TestPredictions:
    """Private: whoever has the reports can tell which answer is whose."""

    __test__ = False  # for pytest, which would collect it by its name

    probabilities: np.ndarray  # [n, num_labels] float32
    labels: np.ndarray  # [n, num_labels] int8: 1, 0, or negative for unknown
    reports: np.ndarray  # [n] row of each report in its collection
    units: np.ndarray
    """[n] what is resampled as a whole: a number per report, or patient where that is the unit."""
    label_names: tuple[str, ...]

    @classmethod
    def of(cls, dataset: ReportDataset, probabilities: np.ndarray, privacy_unit: str) -> Self:
        """`probabilities` are for `dataset.subset("test")`, in its order."""
        reports = np.flatnonzero(dataset.splits == "test")
        units = np.arange(len(reports))
        if privacy_unit == "patient":
            units = np.unique(dataset.patient_ids[reports], return_inverse=True)[1]
        return cls(
            probabilities=np.asarray(probabilities, np.float32),
            labels=dataset.labels[reports],
            reports=reports,
            units=units,
            label_names=dataset.label_names,
        )

    def metrics(self, task: str = "multi-label") -> dict[str, Any]:
        """See `classification_metrics`."""
        return classification_metrics(self.probabilities, self.labels, self.label_names, task)

    def to_bytes(self) -> bytes:
        """A compressed .npz file, for `read`."""
        buffer = io.BytesIO()
        arrays = vars(self) | {"label_names": np.array(self.label_names)}
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Self:
        """DataError if the file is missing or damaged."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                fields = {f.name: arrays[f.name] for f in dataclasses.fields(cls)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            raise DataError(f"{path}: test predictions are missing or damaged") from None
        return cls(**fields | {"label_names": tuple(map(str, fields["label_names"]))})
