# SPDX-License-Identifier: Apache-2.0
"""Texts, labels and patients from Python: every form, and what is wrong with the others."""

import math

import datasets
import numpy as np
import pandas as pd
import pytest

from jaxdp.data.arrays import groups_of, labels_of, texts_of
from jaxdp.data.dataset import DataError

CANARY = "ZEBRAPHRASE"
TEXTS = ["lungs clear", "small effusion", "heart normal"]
NAMES = ("edema", "mass")
TABLE = [[0, 1], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    "values",
    [
        ["lungs  clear", "small\neffusion ", "heart normal"],
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object)[:, None],
        pd.Series(TEXTS, index=[7, 8, 9]),
        pd.Series(TEXTS, dtype="string"),
        pd.DataFrame({"report": TEXTS}),
        datasets.Dataset.from_dict({"text": TEXTS})["text"],
    ],
    ids=lambda values: type(values).__name__,
)
def test_texts_come_in_many_forms_and_are_cleaned(values):
    assert texts_of(values, "X") == TEXTS


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (CANARY, "X must be a list or a column of texts"),
        ({CANARY: "x"}, "X must be a list or a column of texts"),
        (3, "X must be a list or a column of texts"),
        ([], "X is empty"),
        ([CANARY, None], r"X\[1\] has no text"),
        ([CANARY, float("nan")], r"X\[1\] has no text"),
        (pd.Series([CANARY, pd.NA], dtype="string"), r"X\[1\] has no text"),
        ([CANARY, " \n"], r"X\[1\] has no text"),
        ([CANARY, 7], r"X\[1\] is no text but of type int"),
        ([[CANARY, CANARY]], r"X\[0\] is no text but of type list"),
        ([f"{CANARY}\udc80"], r"X\[0\] holds bytes that are no characters"),
        (np.array([[CANARY, CANARY]]), r"X must be one column of texts, not of shape \(1, 2\)"),
    ],
)
def test_what_is_no_text_is_said_by_its_place(values, words):
    with pytest.raises(DataError, match=words) as error:
        texts_of(values, "X")
    assert CANARY not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        (TABLE, None, ("label_0", "label_1")),
        (np.array(TABLE, bool), NAMES, NAMES),
        (pd.DataFrame(TABLE, columns=["edema", "mass"]), None, NAMES),
        ([["mass"], ["mass", "edema"], []], NAMES, NAMES),
        (pd.Series([["mass"], ("mass", "edema"), []]).tolist(), NAMES, NAMES),
    ],
)
def test_labels_come_in_many_forms(values, names, expected):
    table, found = labels_of(values, 3, names)
    assert found == expected and table.dtype == np.int8
    np.testing.assert_array_equal(table, TABLE)


def test_named_labels_choose_and_order_the_columns():
    frame = pd.DataFrame(TABLE, columns=["edema", "mass"]).assign(other=1)
    table, names = labels_of(frame, 3, ["mass", "edema"])
    assert names == ("mass", "edema")
    np.testing.assert_array_equal(table, np.array(TABLE)[:, ::-1])


@pytest.mark.parametrize(
    ("values", "names", "words"),
    [
        ([["mass"], [CANARY], []], NAMES, r"Y\[1\] lists a label that is not in label_names"),
        ([["mass"], [CANARY], []], None, "label_names must list all labels"),
        (TABLE[:2], None, "Y has 2 rows, not 3"),
        ([[0, 1], [1, 2], [0, 0]], None, r"Y\[1\] holds a value that is not 0 or 1"),
        ([[0, 1], [1, np.nan], [0, 0]], None, r"Y\[1\] holds a value that is not 0 or 1"),
        ([[0, 1], [1], [0, 0]], None, "one column of 0 and 1 for each label"),
        (TABLE, ("one",), "Y has 2 columns, label_names 1 names"),
        (pd.DataFrame(TABLE, columns=["edema", CANARY]), NAMES, "no column 'mass', which label_n"),
        (3, NAMES, "Y must be a matrix of 0 and 1"),
        (None, NAMES, "Y requires y to be passed, but the target y is None"),
    ],
)
def test_what_is_no_label_is_said_by_its_place(values, names, words):
    with pytest.raises(DataError, match=words) as error:
        labels_of(values, 3, names)
    assert CANARY not in str(error.value) and "\n" not in str(error.value)


def test_groups_are_ids_of_any_kind():
    assert groups_of(pd.Series([3, 3, 10]), 3).tolist() == ["3", "3", "10"]
    assert groups_of(["p1 ", "p1", 2.0, np.float32(2), "2"], 5).tolist() == ["p1", "p1", *"222"]
    missing = [[CANARY, each, "x"] for each in (None, "nan", " ", "None", math.nan, pd.NA)]
    wrong = [(values, r"groups\[1\] has no id") for values in missing]
    for values, words in (*wrong, ([1], "groups has 1 r")):
        with pytest.raises(DataError, match=words) as error:
            groups_of(values, 3)
        assert CANARY not in str(error.value)
