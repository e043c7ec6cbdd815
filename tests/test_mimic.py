# SPDX-License-Identifier: Apache-2.0
"""MIMIC-CXR on small SYNTHETIC copies of its file layout."""

import gzip

import numpy as np
import pytest
from helpers_data import CANARY, MIMIC_LABELS, MimicFiles, mimic_report, write_mimic

from jaxdp.data.dataset import DataError
from jaxdp.data.mimic import LABELS, load_mimic
from jaxdp.data.readers import REPAIRED


def rows(data):
    return dict(zip(data.report_ids.tolist(), data.texts, strict=True))


def cell(data, study, label):
    row = data.report_ids.tolist().index(f"s{study}")
    return int(data.labels[row, data.label_names.index(label)])


def test_loads_and_counts(tmp_path):
    write_mimic(tmp_path)
    data = load_mimic(tmp_path)
    assert data.label_names == tuple(MIMIC_LABELS) == LABELS
    assert rows(data) == {
        "s50000001": "I1.",
        "s50000002": "I2.",
        "s50000003": "F3.",
        "s50000004": "I4.",
        "s50000005": "Clear lungs.",
        "s50000006": "I6.",
    }
    assert data.splits.tolist() == ["train"] * 3 + ["validation"] * 2 + ["test"]
    assert data.patient_ids.tolist() == [
        "p10000001",
        "p10000001",
        "p11000002",
        "p12000003",
        "p12000003",
        "p19000004",
    ]
    assert data.counts == {
        "reports found": 9,
        "labelled studies without a report": 1,
        "reports without labels, dropped": 1,
        "reports without a split, dropped": 1,
        "reports without text, dropped": 1,
        "uncertain labels, taken as negative": 2,
        "blank labels, taken as negative": 6 * 14 - 6 - 5,  # five of them "No Finding"
    }


def test_default_policy_is_zeros_and_is_stated(tmp_path):
    write_mimic(tmp_path)
    data = load_mimic(tmp_path)
    assert cell(data, 50000001, "Edema") == 1
    assert cell(data, 50000002, "Edema") == 0  # uncertain
    assert cell(data, 50000004, "Edema") == 0  # blank
    assert data.labels.sum() == 3
    assert "CheXpert" in data.label_origin and "uncertain: zeros, blank: zeros" in data.label_origin


@pytest.mark.parametrize(("policy", "value"), [("zeros", 0), ("ones", 1), ("ignore", -1)])
def test_policies(tmp_path, policy, value):
    write_mimic(tmp_path)
    uncertain = load_mimic(tmp_path, uncertain=policy)
    assert cell(uncertain, 50000002, "Edema") == cell(uncertain, 50000006, "Pneumonia") == value
    assert cell(uncertain, 50000002, "Fracture") == cell(uncertain, 50000004, "Edema") == 0
    blank = load_mimic(tmp_path, blank=policy)
    assert cell(blank, 50000004, "Edema") == value
    assert cell(blank, 50000002, "Edema") == cell(blank, 50000002, "Fracture") == 0
    # blank is the only way in which the labelers write "there is a finding"
    assert cell(blank, 50000004, "No Finding") == 0 and cell(blank, 50000003, "No Finding") == 1


@pytest.mark.parametrize(
    ("text", "first", "without_sections"),
    [
        ("impression+findings", "I1. F1.", 1),
        ("findings+impression", "F1. I1.", 1),
        ("impression", "I1.", 2),
        ("findings", "F1.", 4),
    ],
)
def test_text_choice(tmp_path, text, first, without_sections):
    write_mimic(tmp_path)
    data = load_mimic(tmp_path, text=text)
    assert rows(data)["s50000001"] == first
    # the labelled section stands in, and that is counted
    assert rows(data)["s50000005"] == "Clear lungs."
    counted = data.counts["reports without the chosen sections, labelled section used"]
    assert counted == without_sections + 1  # and the empty report


def test_full_text(tmp_path):
    write_mimic(tmp_path)
    full = rows(load_mimic(tmp_path, text="full"))["s50000001"]
    assert full.startswith("FINAL REPORT EXAMINATION:") and full.endswith("IMPRESSION: I1.")
    assert "___ year old" in full


def test_wrapped_lines_become_one(tmp_path):
    mimic = MimicFiles(tmp_path).report(50000001, 10000001, mimic_report("No  acute\n disease."))
    mimic.labels([(10000001, 50000001, {})]).splits([(50000001, 10000001, "train")])
    assert rows(load_mimic(tmp_path)) == {"s50000001": "No acute disease."}


def test_labels_by_choice_and_other_labeler(tmp_path):
    mimic = write_mimic(tmp_path)
    studies = [(10000001, 50000001, {"Edema": "0.0", "Fracture": "1.0"})]
    mimic.labels(studies, kind="negbio")
    data = load_mimic(tmp_path, labels=("Fracture", "Edema"), labeler="negbio")
    assert data.labels.tolist() == [[1, 0]] and "NegBio" in data.label_origin
    assert data.counts["reports without labels, dropped"] == 8


def test_archive_gives_the_same_as_the_tree(tmp_path):
    mimic = write_mimic(tmp_path)
    tree = load_mimic(tmp_path, text="full")
    mimic.archive()
    archive = load_mimic(tmp_path, text="full")
    assert rows(archive) == rows(tree) and archive.counts == tree.counts
    np.testing.assert_array_equal(archive.labels, tree.labels)


def test_archive_is_preferred_to_a_tree_that_may_be_partial(tmp_path):
    mimic = write_mimic(tmp_path).archive(keep_tree=True)
    next(mimic.files.rglob("s50000001.txt")).unlink()
    assert "s50000001" in rows(load_mimic(tmp_path))


def test_damaged_archive(tmp_path):
    mimic = write_mimic(tmp_path).archive()
    path = mimic.files.parent / "mimic-cxr-reports.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="mimic-cxr-reports.zip is not a complete zip archive"):
        load_mimic(tmp_path)
    path.write_bytes(whole.replace(b"I1.", b"I2."))
    with pytest.raises(DataError, match="damaged: a report in it cannot be read"):
        load_mimic(tmp_path)


def test_layout_of_wget_and_tables_beside_the_reports(tmp_path):
    mimic = MimicFiles(tmp_path, "physionet.org/files/mimic-cxr/2.1.0")
    mimic.report(50000001, 10000001, mimic_report("I."))
    mimic.labels([(10000001, 50000001, {})], version="2.1.0", pack=False)
    mimic.splits([(50000001, 10000001, "train")], version="2.1.0")
    assert rows(load_mimic(tmp_path)) == {"s50000001": "I."}


def test_unpacked_beside_packed_is_one_table_but_two_versions_are_not(tmp_path):
    mimic = write_mimic(tmp_path)
    packed = mimic.jpg / "mimic-cxr-2.0.0-split.csv.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    assert len(load_mimic(tmp_path)) == 6
    mimic.splits([(50000001, 10000001, "train")], version="2.1.0")
    with pytest.raises(DataError, match="2.0.0-split.csv, .*2.1.0-split.csv.gz are several"):
        load_mimic(tmp_path)


def test_columns_by_name_in_any_order_and_ids_as_programs_rewrite_them(tmp_path):
    mimic = MimicFiles(tmp_path).report(50000001, 10000001, mimic_report("I."))
    mimic.splits([("s50000001", "10000001.0", "train")])
    mimic.labels([(1, "50000001.0", [10000001])], header="Edema,study_id,subject_id", pack=False)
    data = load_mimic(tmp_path, labels=("Edema",))
    assert data.labels.tolist() == [[1]] and data.splits.tolist() == ["train"]


def test_reports_in_other_encodings_and_line_ends(tmp_path):
    mimic = write_mimic(tmp_path)
    latin = mimic_report("Sj\xf6gren.").replace("\n", "\r\n").encode("latin-1")
    next(mimic.files.rglob("s50000001.txt")).write_bytes(latin)
    data = load_mimic(tmp_path)
    assert rows(data)["s50000001"] == "Sj\xf6gren." and data.counts[REPAIRED] == 1


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda m: m.splits([(50000001, 10000001, "valid")]), "row 2 has a split that is not"),
        (lambda m: m.splits([("", 10000001, "train")]), "row 2 has no whole number"),
        (
            lambda m: m.splits([(50000001, 10000001, "train"), (50000001, 10000001, "test")]),
            "row 4 gives its study another patient or split",
        ),
        (
            lambda m: m.splits([(50000001, 10000009, "train")]),
            "chexpert.csv.gz: row 2 gives its study another patient than the split",
        ),
        (
            lambda m: m.labels([(10000001, 50000001, {}), (10000001, 50000001, {})]),
            "row 3 repeats a study",
        ),
        (
            lambda m: m.labels([(10000001, 50000001, {"Edema": "2.0"})]),
            "row 2: label 4 of 14 is not 1, yes",
        ),
        (
            lambda m: m.labels([], header="subject_id,study_id,Atelectasis"),
            "it has 3 columns, none of them 'Cardiomegaly' or 'Cons",
        ),
        (
            lambda m: m.report(50000001, 10000002, mimic_report("Filed under another patient.")),
            "holds two reports of one study",
        ),
        (
            lambda m: m.splits([(s, 10000001, "train") for s in range(50000001, 50000009)]).labels(
                [(10000001, 50000003, {})]
            ),
            "disagree on a study's patient",
        ),
    ],
)
def test_refusals(tmp_path, write, message):
    write(write_mimic(tmp_path))
    with pytest.raises(DataError, match=message) as error:
        load_mimic(tmp_path)
    assert "5000000" not in str(error.value) and "1000000" not in str(error.value)


def test_wrong_root_says_what_is_missing_what_was_found_and_where_to_get_it(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "p10000032").mkdir()
    with pytest.raises(DataError) as error:
        load_mimic(tmp_path)
    message = str(error.value)
    assert "\n" not in message and message.count("MISSING") == 3
    assert "mimic-cxr-2.*-chexpert.csv(.gz)" in message and "mimic-cxr-reports.zip" in message
    assert "At its top: notes, 1 other(s)" in message and "p10000032," not in message
    assert "physionet.org/content/mimic-cxr-jpg" in message
    with pytest.raises(DataError, match="does not exist"):
        load_mimic(tmp_path / "absent")


def test_only_images_are_not_reports(tmp_path):
    mimic = write_mimic(tmp_path)
    for path in list(mimic.files.rglob("*.txt")):
        path.unlink()
    with pytest.raises(DataError, match=r"mimic-cxr-reports.zip \(MISSING\); .*csv\(.gz\) \(found"):
        load_mimic(tmp_path)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"text": "all"}, "data.text must be one of impression"),
        (
            {"labels": ("Edma",)},
            "16 columns, none of them 'Edma'; column 6 is nearly 'Edma'$",
        ),
    ],
)
def test_unknown_choices(tmp_path, choice, message):
    write_mimic(tmp_path)
    with pytest.raises(DataError, match=message):
        load_mimic(tmp_path, **choice)


def test_no_report_text_or_id_in_errors_from_any_damaged_table(tmp_path):
    mimic = write_mimic(tmp_path)
    for name in ("mimic-cxr-2.0.0-split.csv.gz", "mimic-cxr-2.0.0-chexpert.csv.gz"):
        path = mimic.jpg / name
        whole = path.read_bytes()
        # a report where the table should be, with no header row
        path.write_bytes(f"{CANARY},50000001,10000001\n{CANARY}".encode())
        with pytest.raises(DataError, match="row 1 must name the columns") as error:
            load_mimic(tmp_path)
        assert CANARY not in str(error.value) and "50000001" not in str(error.value)
        path.write_bytes(whole[:-12])
        with pytest.raises(DataError, match="not a complete gzip file"):
            load_mimic(tmp_path)
        path.write_bytes(whole)
