# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from helpers_data import CANARY, make_dataset, write_table

from jaxdp.data.dataset import DataError
from jaxdp.data.teacher import apply_teacher

HEADER = ["study_id", "odd", "even", "note"]
ROWS = [["r3", 1, 1, "x"], ["r0", 0, 1, "x"], ["r1", "", -1, "x"], ["r2", 1, 0, "x"]]


@pytest.fixture
def data():
    """Labels (even, odd) of r0 ... r3; UNKNOWN is -1."""
    return make_dataset(labels=np.array([[0, 1], [-1, 1], [-1, -1], [0, -1]], np.int8))


def teach(data, tmp_path, rows=None, header=None, name="t.csv", **kwargs):
    table = write_table(
        tmp_path / name,
        HEADER if header is None else header,
        ROWS if rows is None else rows,
        delimiter="\t" if name.endswith("tsv") else ",",
    )
    return apply_teacher(data, table, **({"origin": "a large model"} | kwargs))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_replace_joins_by_id_and_label_name(data, tmp_path, name):
    taught = teach(data, tmp_path, name=name)
    assert taught.labels.tolist() == [[1, 0], [0, 0], [0, 1], [1, 1]]
    assert taught.texts == data.texts and taught.report_ids.tolist() == ["r0", "r1", "r2", "r3"]
    assert taught.label_origin == "teacher: a large model (uncertain: zeros, blank: zeros)"
    assert set(taught.labelled_by) == {"teacher"}
    assert taught.counts["reports without teacher labels"] == 0


def test_fill_changes_only_unknown_labels(data, tmp_path):
    taught = teach(data, tmp_path, mode="fill", blank="ignore")
    assert taught.labels.tolist() == [[0, 1], [0, 1], [0, 1], [0, 1]]
    assert taught.counts["labels filled by the teacher"] == 4
    assert taught.label_origin.startswith("made up; where it gives none, teacher: a large model")


def test_missing_and_surplus_ids_are_limited_and_counted(data, tmp_path):
    rows = [*ROWS[:3], ["other", 0, 0, "x"], ["another", 0, 0, "x"]]
    with pytest.raises(DataError, match="1 reports without .* teacher.max_missing = 0"):
        teach(data, tmp_path, rows)
    with pytest.raises(DataError, match="2 teacher labels .* teacher.max_surplus = 1"):
        teach(data, tmp_path, rows, max_missing=1, max_surplus=1)
    taught = teach(data, tmp_path, rows, max_missing=1, max_surplus=2)
    assert taught.report_ids.tolist() == ["r0", "r1", "r3"]
    assert taught.labels.tolist() == [[1, 0], [0, 0], [1, 1]]
    assert taught.counts["reports without teacher labels"] == 1
    assert taught.counts["teacher labels without a report"] == 2
    filled = teach(data, tmp_path, rows, max_missing=1, max_surplus=2, mode="fill")
    assert filled.labels.tolist() == [[0, 1], [0, 1], [-1, -1], [0, 1]]


def test_policies(data, tmp_path):
    taught = teach(data, tmp_path, uncertain="ones", blank="ignore")
    assert taught.labels[1].tolist() == [1, -1]
    assert taught.counts["teacher's uncertain labels, taken as positive"] == 1
    assert taught.counts["teacher's blank labels, taken as unknown"] == 1


def test_study_numbers_of_mimic(tmp_path):
    ids = np.array(["s50000001", "s50000002"])
    data = make_dataset("ab", report_ids=ids)
    rows = [["50000002.0", 1, 0, ""], ["s50000001", 0, 1, ""]]
    assert teach(data, tmp_path, rows).labels.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(DataError, match="row 4 repeats an id"):
        teach(data, tmp_path, [*rows, ["50000001", 1, 1, ""]])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"origin": " "}, "teacher.origin must say who made the labels"),
        ({"rows": [*ROWS, ["r0", 1, 1, CANARY]]}, "row 6 repeats an id"),
        ({"rows": [["r0", 0.5, 1, CANARY]]}, "row 2: label 2 of 2 is not 1, yes"),
        (
            {"header": ["study_id", "Odd", "even", "note"]},
            "4 columns, none of them 'odd'; column 2 is nearly 'odd'$",
        ),
        ({"id_column": "report"}, "it has 4 columns, none of them 'report'$"),
    ],
)
def test_refusals(data, tmp_path, kwargs, message):
    with pytest.raises(DataError, match=message) as error:
        teach(data, tmp_path, **kwargs)
    assert CANARY not in str(error.value)
