# SPDX-License-Identifier: Apache-2.0
"""PadChest on small SYNTHETIC copies of its table."""

import gzip

import pytest
from helpers_data import CANARY, write_padchest, write_table

from jaxdp.data.dataset import DataError
from jaxdp.data.padchest import LABELS, load_padchest
from jaxdp.data.readers import REPAIRED

PHYSICIAN, MODEL = "Physician", "RNN_model"
ROWS = [
    # report, patient, text, labels, method
    ("1", "a", " corazon normal .", "['normal']", PHYSICIAN),
    ("1", "a", " corazon normal .", "['normal']", PHYSICIAN),
    ("2", "a", " derram .", "['loculated pleural effusion', ' nodule', 'unchanged']", MODEL),
    ("3", "b", " sin  cambi .", "['unchanged']", MODEL),
    ("4", "c", "nan", "['normal']", PHYSICIAN),
    ("5", "c", " nodul .", "['']", MODEL),
    ("6", "c", " nodul .", "nan", MODEL),
]


def load(path, rows, **kwargs):
    return load_padchest(
        write_padchest(path / "p.csv.gz", rows), **({"labels": ("normal",)} | kwargs)
    )


def test_one_row_per_report(tmp_path):
    data = load(tmp_path, ROWS, labels=("normal", "pleural_effusion", "nodule"))
    assert data.report_ids.tolist() == ["1", "2", "3"]
    assert data.texts == ["corazon normal .", "derram .", "sin cambi ."]
    assert data.labels.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert data.patient_ids.tolist() == ["a", "a", "b"]
    assert data.labelled_by.tolist() == ["physician", "model", "model"]
    assert data.counts == {
        "rows read": 7,
        "reports": 6,
        "pseudonyms merged into another": 0,
        "reports without text, dropped": 1,
        "reports without labels, dropped": 2,
    }


def test_own_terms_are_labels_and_absent_ones_are_refused(tmp_path):
    assert load(tmp_path, ROWS, labels=("unchanged",)).labels.T.tolist() == [[0, 1, 1]]
    with pytest.raises(DataError, match="no report carries 'goiter'"):
        load(tmp_path, ROWS, labels=("goiter",))


def test_eighteen_labels_of_disjoint_terms():
    terms = [term for terms in LABELS.values() for term in terms]
    assert len(LABELS) == 18 and len(set(terms)) == len(terms)


@pytest.mark.parametrize("first", [0, 1])
def test_the_physicians_labels_win(tmp_path, first):
    rows = [("1", "a", "x", "['normal']", PHYSICIAN), ("1", "a", "x", "['nodule']", MODEL)]
    data = load(tmp_path, [rows[first], rows[1 - first]])
    assert data.labels.tolist() == [[1]] and data.labelled_by.tolist() == ["physician"]


def test_pseudonyms_that_share_a_report_are_one_patient(tmp_path):
    rows = [("0", "z", "x", "['normal']", MODEL)]
    # 5-6, 6-7 and 3-5 share a report each: 3, 5, 6, 7 are one patient, found in any order
    shared = [("1", "56"), ("2", "67"), ("3", "35")]
    rows += [(r, p, "x", "['normal']", MODEL) for r, patients in shared for p in patients]
    rows += [(f"own{p}", p, "x", "['normal']", MODEL) for p in "34567"]
    data = load(tmp_path, rows)
    patient = dict(zip(data.report_ids.tolist(), data.patient_ids.tolist(), strict=True))
    assert {patient[r] for r in ("1", "2", "3", "own3", "own5", "own6", "own7")} == {"3"}
    assert patient["own4"] == "4" and patient["0"] == "z"
    assert data.counts["pseudonyms merged into another"] == 3


def test_evaluation_on_physician_labelled_reports(tmp_path):
    methods = (PHYSICIAN, MODEL)
    rows = [(str(i), f"p{i}", "x", "['normal']", methods[i % 2]) for i in range(400)]
    everything = load(tmp_path, rows)
    data = load(tmp_path, rows, evaluate_on="physician")
    train = data.splits == "train"
    assert set(data.labelled_by[~train]) == {"physician"}
    # training keeps all, and nobody changes sides
    assert train.sum() == (everything.splits == "train").sum()
    assert set(data.labelled_by[train]) == {"physician", "model"}
    dropped = data.counts["model-labelled validation and test reports, dropped"]
    assert dropped == len(everything) - len(data) > 0


def test_encoding_fallback_is_counted(tmp_path):
    path = write_padchest(tmp_path / "p.csv.gz", [("1", "a", "t\xf3rax", "['normal']", MODEL)])
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(content.decode().encode("latin-1"))
    data = load_padchest(path, labels=("normal",))
    assert data.texts == ["t\xf3rax"] and data.counts[REPAIRED] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("1", "b", CANARY, "['normal']", MODEL), "row 9 gives its report another text"),
        (("9", "b", CANARY, "['normal']", "Nurse"), "row 9 has a MethodLabel not in Physician"),
        (("", "b", CANARY, "['normal']", MODEL), "row 9 has no ReportID or no PatientID"),
        (("9", "nan", CANARY, "['normal']", MODEL), "row 9 has no ReportID or no PatientID"),
    ],
)
def test_refusals_name_the_row(tmp_path, row, message):
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path, [*ROWS, row])
    assert CANARY not in str(error.value)


def test_wrong_files(tmp_path):
    with pytest.raises(DataError, match="is not a file; expected PadChest's CSV table"):
        load_padchest(tmp_path)
    other = write_table(tmp_path / "other.csv", ["ReportID", "Report"], [["1", CANARY]])
    with pytest.raises(DataError, match="2 columns, none of them 'PatientID' or 'Labels' or 'Met"):
        load_padchest(other)
    with pytest.raises(DataError, match="no usable report"):
        load(tmp_path, ROWS[4:])
