# SPDX-License-Identifier: Apache-2.0
"""Counts that describe a set of labelled reports, without any report in them.

They are exact counts of private data, under no guarantee: for those who may see the reports.
"""

from typing import Any

import numpy as np

from .dataset import SPLITS, ReportDataset


def summarize(dataset: ReportDataset, lengths: np.ndarray, max_length: int) -> dict[str, Any]:
    """JSON-ready counts of a data set, by split.

    Args:
        dataset: all splits together.
        lengths: [n] tokens of each report, special tokens included, before cutting.
        max_length: what they are cut to.
    """
    return {
        "source": dataset.name,
        "labels_made_by": dataset.label_origin,
        "reports": len(dataset),
        "patients_known": dataset.patients_known,
        "loader": dict(dataset.counts),
        "max_length": max_length,
        "splits": {
            split: _split(dataset, np.flatnonzero(dataset.splits == split), lengths, max_length)
            for split in SPLITS
            if (dataset.splits == split).any()
        },
        "warnings": dataset.warnings(),
    }


def _split(
    dataset: ReportDataset, rows: np.ndarray, lengths: np.ndarray, max_length: int
) -> dict[str, Any]:
    per_patient = np.sort(np.unique(dataset.patient_ids[rows], return_counts=True)[1])
    tokens = lengths[rows]
    labels = dataset.labels[rows]
    result: dict[str, Any] = {
        "reports": len(rows),
        "patients": len(per_patient),
        "reports_per_patient": {
            "median": int(per_patient[(len(per_patient) - 1) // 2]),
            "largest": int(per_patient[-1]),
        },
        "tokens": {
            "median": float(np.median(tokens)),
            "p95": float(np.percentile(tokens, 95)),
            "longest": int(tokens.max()),
            "reports_cut": int((tokens > max_length).sum()),
        },
        "labels": {
            name: {
                "positive": int((column == 1).sum()),
                "negative": int((column == 0).sum()),
                "unknown": int((column < 0).sum()),
            }
            for name, column in zip(dataset.label_names, labels.T, strict=True)
        },
    }
    if dataset.labelled_by is not None:
        makers, sizes = np.unique(dataset.labelled_by[rows], return_counts=True)
        result["labelled_by"] = dict(zip(makers.tolist(), sizes.tolist(), strict=True))
    return result
