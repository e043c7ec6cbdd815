# SPDX-License-Identifier: Apache-2.0
"""What a run keeps of its answers for the test reports."""

import dataclasses

import numpy as np
import pytest
from helpers_data import make_dataset

from jaxdp.data.dataset import DataError
from jaxdp.evaluation.predictions import TestPredictions


def predictions(unit: str) -> TestPredictions:
    dataset = make_dataset(
        patients=("x9", "x9", "b", "c", "b"), splits=["test", "test", "test", "train", "test"]
    )
    return TestPredictions.of(dataset, np.full((4, 2), 0.25), unit)


def test_reports_are_rows_and_patients_are_numbers():
    kept = predictions("report")
    assert kept.reports.tolist() == [0, 1, 2, 4] and kept.units.tolist() == [0, 1, 2, 3]
    assert predictions("patient").units.tolist() == [1, 1, 0, 0]


def test_a_file_gives_back_what_was_kept_and_holds_no_id_and_no_text(tmp_path):
    kept = predictions("patient")
    path = tmp_path / "p.npz"
    path.write_bytes(kept.to_bytes())
    read = TestPredictions.read(path)
    for field in dataclasses.fields(kept):
        assert np.array_equal(getattr(read, field.name), getattr(kept, field.name)), field.name
    with np.load(path) as arrays:
        words = [str(v) for a in arrays.values() if a.dtype.kind not in "fiu" for v in a]
    assert words == ["even", "odd"]


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "p.npz"
    whole = predictions("report").to_bytes()
    for content in (b"", b"x", whole[:-40], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="p.npz: test predictions are missing or damaged"):
            TestPredictions.read(path)
    with pytest.raises(DataError, match="missing"):
        TestPredictions.read(tmp_path / "none")
