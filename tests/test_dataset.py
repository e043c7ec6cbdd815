# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from helpers_data import CANARY, make_dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxdp.data.dataset import SPLITS, UNKNOWN, DataError, assign_splits, keyed_fraction


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": []}, "no usable report"),
        ({"labels": np.zeros((4, 3), np.int8)}, r"shape \(4, 3\), expected \(4 reports, 2 labels"),
        ({"labels": np.full((4, 2), 2, np.int8)}, "row 0 has a label that is not 0, 1 or -1"),
        ({"label_names": ("a", "a")}, "label names are not unique"),
        ({"texts": ["a", "b", " \n\t", "d"]}, "row 2 has no text"),
        ({"report_ids": np.array(["a", "b", "c", "b"])}, "row 3 repeats a report id"),
        ({"report_ids": np.array(["a", "b", "c"])}, "report_ids has 3 rows, not 4"),
        ({"patient_ids": np.array(["a"])}, "patient_ids has 1 rows, not 4"),
        ({"labelled_by": np.array(["a"])}, "labelled_by has 1 rows, not 4"),
        ({"splits": np.array(["train"] * 3 + ["valid"])}, "splits must be among train, valid"),
        ({"splits": np.array(["train", "test"] * 2)}, "1 patients are in more than one split"),
    ],
)
def test_refusals_name_the_row_and_never_the_text(changes, message):
    with pytest.raises(DataError, match=message) as error:
        make_dataset(**changes)
    assert CANARY not in str(error.value)


def test_repr_holds_no_text():
    data = make_dataset()
    assert repr(data) == "ReportDataset('synthetic', 4 reports, 2 labels)"


def test_subset_keeps_rows_together():
    data = make_dataset(
        splits=["train", "train", "test", "train"], labelled_by=np.array(list("xyzx"))
    )
    train, test = data.subset("train"), data.subset("test")
    assert train.report_ids.tolist() == ["r0", "r1", "r3"]
    assert train.labelled_by.tolist() == ["x", "y", "x"] and test.labelled_by.tolist() == ["z"]
    assert test.texts == [data.texts[2]] and test.labels.tolist() == [data.labels[2].tolist()]
    with pytest.raises(DataError, match="validation split is empty"):
        data.subset("validation")


def test_warnings_name_constant_labels_per_split():
    labels = np.array([[0, 1, 0], [0, 1, UNKNOWN], [1, 0, UNKNOWN], [0, 1, UNKNOWN]], np.int8)
    data = make_dataset(
        patients="abcd",
        labels=labels,
        label_names=("x", "y", "z"),
        splits=["train", "train", "train", "test"],
    )
    assert data.warnings() == [
        "label 'z' is never positive in the train split",
        "label 'x' is never positive in the test split",
        "label 'y' is always positive in the test split",
        "label 'z' is never positive in the test split",
    ]


IDS = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=30)


@given(IDS, st.integers(0, 5), st.integers(0, 29))
def test_a_patients_split_does_not_depend_on_other_patients(ids, seed, leave_out):
    ids = np.array(ids)
    whole = assign_splits(ids, seed)
    assert set(whole) <= set(SPLITS)
    for patient in np.unique(ids):
        assert len(set(whole[ids == patient])) == 1
    rest = ids != ids[leave_out % len(ids)]
    if rest.any():
        np.testing.assert_array_equal(assign_splits(ids[rest], seed), whole[rest])


def test_split_sizes_follow_the_fractions():
    ids = np.arange(20_000).astype(str)
    names, sizes = np.unique(assign_splits(ids, 3, (0.7, 0.2)), return_counts=True)
    found = dict(zip(names, sizes, strict=True))
    expected = {"train": 14_000, "validation": 4_000, "test": 2_000}
    assert stats.chisquare(list(found.values()), [expected[n] for n in found]).pvalue > 1e-4
    # the same test tells 0.7 from 0.68
    shifted = {"train": 13_600, "validation": 4_400, "test": 2_000}
    assert stats.chisquare(list(found.values()), [shifted[n] for n in found]).pvalue < 1e-4
    assert (assign_splits(ids, 3) != assign_splits(ids, 4)).any()


def test_keyed_fraction_is_uniform_and_depends_on_seed_and_purpose():
    ids = np.arange(5_000).astype(str)
    draws = keyed_fraction(ids, 0, "a")
    assert stats.kstest(draws, "uniform").pvalue > 1e-4
    for other in (keyed_fraction(ids, 1, "a"), keyed_fraction(ids, 0, "b")):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 5 / np.sqrt(len(ids))
