# SPDX-License-Identifier: Apache-2.0
"""The same SYNTHETIC reports in every format that a table can have."""

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import openpyxl
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_data import CANARY, write_table

from jaxdp.data.dataset import DataError
from jaxdp.data.readers import REPAIRED
from jaxdp.data.tables import load_table

COLUMNS = {
    "study": ["s1", "s2", "s3", "s4", "s5"],
    "who": ["a", "a", "b", "c", "d"],
    "findings": ["Line one.\nLine two.", "Two, with comma", "Three", None, "Five"],
    "impression": ["I1", None, "I3", "", "I5"],
    "part": ["train", "train", "Val", "test", "test"],
    "edema": [1, 0, None, 1, 0],
    "mass": [0, 1, 1, 0, -1],
    "tags": [["edema"], ["mass"], ["mass", "other"], ["edema"], []],
    "grade": ["none", "severe", "none", "mild", "severe"],
    "code": [0, 1, 0, 2, 1],
    "level": ["1", "2", "1", "2", "2"],
}
CHOICE = dict(
    labels=("edema", "mass"),
    text_columns=("impression", "findings"),
    id_column="study",
    patient_column="who",
    split_column="part",
)
TEXTS = ["I1\nLine one. Line two.", "Two, with comma", "I3\nThree", "I5\nFive"]
LABELS = [[1, 0], [0, 1], [0, 1], [0, 0]]


def records():
    return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]


def write(folder, kind):
    """The table in one format."""
    path = folder / f"table.{kind}"
    rows = [["" if v is None else v for v in r.values()] for r in records()]
    if kind in DELIMITED:
        delimiter, encoding = DELIMITED[kind]
        path = path.with_suffix(".csv")
        write_table(path, COLUMNS, rows, delimiter=delimiter, encoding=encoding)
    elif kind.startswith(("csv", "tsv")):
        write_table(path, COLUMNS, rows, delimiter="\t" if kind.startswith("tsv") else ",")
    elif kind == "xlsx":
        book = openpyxl.Workbook()
        for row in [
            list(COLUMNS),
            *([str(v) if isinstance(v, list) else v for v in r] for r in rows),
        ]:
            book.active.append(row)
        book.create_sheet("other")
        book.save(path)
    elif kind == "json":
        path.write_text(json.dumps(records(), indent=1))
    elif kind == "pandas.json":
        path.write_text(pandas.DataFrame(COLUMNS).to_json())
    elif kind == "lines.json":
        path.write_text("\n".join(map(json.dumps, records())))
    elif kind.startswith(("jsonl", "ndjson")):
        path.write_text("\n".join(map(json.dumps, records())) + "\n\n")
    elif kind == "parquet":
        pq.write_table(pa.table(COLUMNS), path)
    elif kind == "on_disk":
        datasets.Dataset.from_dict(COLUMNS).save_to_disk(path)
    elif kind == "folder":
        path.mkdir()
        pq.write_table(pa.table(COLUMNS), path / "train.parquet")
    if kind.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return str(path)


DELIMITED = {
    "semicolon": (";", "utf-8-sig"),
    "tab": ("\t", "utf-16"),
    "bar": ("|", "utf-16"),
}
JSON = ["json", "pandas.json", "lines.json", "jsonl", "ndjson.gz"]
KINDS = ["csv", "csv.gz", "tsv", *DELIMITED, *JSON, "parquet", "xlsx", "on_disk", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same(tmp_path, kind):
    data = load_table(write(tmp_path, kind), **CHOICE)
    assert data.texts == TEXTS and data.labels.tolist() == LABELS
    assert data.report_ids.tolist() == ["s1", "s2", "s3", "s5"]
    assert data.patient_ids.tolist() == ["a", "a", "b", "d"]
    assert data.splits.tolist() == ["train", "train", "validation", "test"]
    assert data.counts == {
        "rows read": 5,
        "reports without text, dropped": 1,
        "blank labels, taken as negative": 1,
        "uncertain labels, taken as negative": 1,
    }
    assert data.patients_known and data.name.startswith("table.")


@pytest.mark.parametrize("kind", KINDS)
def test_missing_columns(tmp_path, kind):
    source = write(tmp_path, kind)
    with pytest.raises(DataError, match="'impresion'") as error:
        load_table(source, **(CHOICE | {"text_columns": ("impresion",)}))
    assert "Two, with comma" not in str(error.value)


@pytest.mark.parametrize("kind", ["csv.gz", "ndjson.gz"])
def test_half_a_file(tmp_path, kind):
    source = write(tmp_path, kind)
    Path(source).write_bytes(Path(source).read_bytes()[:-20])
    with pytest.raises(DataError, match="is not a complete gzip file"):
        load_table(source, **CHOICE)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "xlsx"])
def test_label_list(tmp_path, kind):
    data = load_table(write(tmp_path, kind), **CHOICE, label_column="tags")
    assert data.labels.tolist() == LABELS
    assert data.counts["labels not in data.labels, ignored"] == 1
    assert data.counts["reports that list no label, taken as negative in all"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_by_name_or_number_in_every_format(tmp_path, kind):
    source = write(tmp_path, kind)
    grades = CHOICE | {"labels": ("none", "severe"), "one_class": True}
    for column in ("grade", "code"):
        data = load_table(source, **grades, label_column=column)
        assert data.labels.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]] and data.texts == TEXTS
        assert data.labels.dtype == np.int8
        assert data.label_origin == "as given in the table (one class for each report)"
    levels = load_table(source, **grades | {"labels": ("2", "1")}, label_column="level")
    assert levels.labels.tolist() == [[0, 1], [1, 0], [0, 1], [1, 0]], "a number that is a name"


ONE_CLASS = [
    ([["x", ""]], "row 3 has in 'class' no class$"),
    ([["x", "n/a"]], "row 3 has in 'class' no class$"),
    ([["x", CANARY]], "row 3 has in 'class' neither one of data.labels nor its number"),
    ([["x", "a;b"]], "row 3 has in 'class' neither one of data.labels nor its number"),
    ([["x", "1"]], "row 3 has in 'class' another form than rows before"),
    ([["x", "7"]], "row 3 has in 'class' neither one of data.labels nor its number"),
    ([], "no report carries 'b' in .*t.csv"),
    ([["x", "b"]], None),
]


@pytest.mark.parametrize(("rows", "message"), ONE_CLASS)
def test_bad_classes_are_said_by_their_row(tmp_path, rows, message):
    rows = [["w", "a", "train"], *([*row, "train"] for row in rows)]
    path = str(write_table(tmp_path / "t.csv", ["text", "class", "part"], rows))
    choice = dict(labels=("a", "b"), one_class=True, label_column="class", split_column="part")
    choice["split_seed"] = 3  # with which both good rows are for training
    if message is None:
        assert load_table(path, **choice).labels.tolist() == [[1, 0], [0, 1]]
        return
    with pytest.raises(DataError, match=message) as error:
        load_table(path, **choice)
    assert CANARY not in str(error.value) and "\n" not in str(error.value)


def test_classes_that_are_numbers_take_no_other(tmp_path):
    rows = [["w", "1"], ["x", "2"], ["y", "0"]]
    path = str(write_table(tmp_path / "t.csv", ["text", "class"], rows))
    with pytest.raises(DataError, match="row 4 has in 'class' neither one of data.labels"):
        load_table(path, labels=("1", "2"), one_class=True, label_column="class")
    with pytest.raises(DataError, match="data.label_column must name the column of classes"):
        load_table(path, labels=("1", "2"), one_class=True)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_training_lacks_is_named(tmp_path, split):
    rows = [["w", "a", "train"], ["x", "b", "train"], ["y", "c", split]]
    path = str(write_table(tmp_path / "t.csv", ["text", "class", "part"], rows))
    choice = dict(one_class=True, label_column="class", split_column="part")
    with pytest.raises(DataError, match=f"class 'c' is in the {split} split and not in training"):
        load_table(path, labels=("a", "b", "c"), **choice, validation_fraction=0.0)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("edema;mass", [1, 1]),
        (" mass | x", [0, 1]),
        ('["edema", "x"]', [1, 0]),
        ("['mass']", [0, 1]),
        ("[0, 1]", [0, 1]),
        ("[1.0, 0.0]", [1, 0]),
        ("[None, 1]", [0, 1]),
        ("[None, 'mass']", [0, 1]),
        ("", [0, 0]),
        ("[]", [0, 0]),
    ],
)
def test_label_list_in_one_cell(tmp_path, cell, expected):
    rows = [["x", cell], ["y", "edema;mass"]]
    path = write_table(tmp_path / "t.csv", ["text", "tags"], rows)
    data = load_table(str(path), labels=("edema", "mass"), label_column="tags")
    assert data.labels.tolist() == [expected, [1, 1]]


def test_splits_of_a_stored_dataset(tmp_path):
    parts = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {i}" for i in range(9)], "x": [0] * 9})
        for name in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    data = load_table(str(tmp_path / "d"), labels=("x",), validation_fraction=0.4)
    assert set(data.splits[[t.startswith("test") for t in data.texts]]) == {"test"}
    assert set(data.splits[[t.startswith("train") for t in data.texts]]) == {"train", "validation"}
    assert len(set(data.report_ids)) == 18


@pytest.mark.parametrize("patients", [False, True])
def test_a_row_more_moves_no_other_between_splits(tmp_path, patients):
    """Or adding one report would change the training data of others, and no bound would hold."""
    rows = [[f"text {i % 90}", i % 2, f"p{i // 3}"] for i in range(300)]
    ids = {"patient_column": "who"} if patients else {}

    def read(rows):
        path = str(write_table(tmp_path / "t.csv", ["text", "x", "who"], rows))
        data = load_table(path, labels=("x",), **ids)
        whole = zip(data.texts, data.labels.tolist(), data.splits, data.report_ids, strict=True)
        return Counter(map(str, whole))

    before = read(rows)
    after = read([["another", 0, "q"], *rows[:100], ["one more", 1, "q"], *rows[100:]])
    assert before - after == Counter() and (after - before).total() == 2
    assert read(rows[::-1]) == before


def test_rows_of_parts_whose_names_end_in_digits_are_told_apart(tmp_path):
    for name, rows in (("part1", 11), ("part11", 1)):
        data = {"text": [f"{name} {i}" for i in range(rows)], "x": [0] * rows}
        data["fold"] = ["train"] * rows
        datasets.Dataset.from_dict(data).save_to_disk(tmp_path / name)
    parts = {n: datasets.load_from_disk(str(tmp_path / n)) for n in ("part1", "part11")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    data = load_table(str(tmp_path / "both"), labels=("x",), split_column="fold")
    assert len(set(data.report_ids)) == 12


def test_without_splits_they_are_random_by_patient(tmp_path):
    rows = [[f"text {i}", f"p{i // 3}", i % 2] for i in range(600)]
    path = str(write_table(tmp_path / "t.csv", ["text", "who", "x"], rows))
    data = load_table(path, labels=("x",), patient_column="who")
    sizes = {name: (data.splits == name).sum() for name in ("train", "validation", "test")}
    assert 400 < sizes["train"] < 560 and min(sizes.values()) > 15
    other = load_table(path, labels=("x",), patient_column="who", split_seed=1)
    assert (other.splits != data.splits).any()


def test_without_patients_they_are_not_claimed(tmp_path):
    path = write_table(tmp_path / "t.csv", ["text", "x"], [["a", 1], ["b", 0]])
    data = load_table(str(path), labels=("x",))
    assert not data.patients_known and len(np.unique(data.patient_ids)) == 2


@pytest.mark.parametrize("missing", ["nan", "NaN", "None", "", "  ", "Not given."])
def test_words_for_missing_text_are_not_text(tmp_path, missing):
    path = write_table(tmp_path / "t.csv", ["text", "x"], [[missing, 1], ["real", 0]])
    assert load_table(str(path), labels=("x",)).texts == ["real"]


def test_missing_values_of_parquet_are_not_the_text_nan(tmp_path):
    table = {"text": ["a", None], "x": [1.0, None], "who": [3.0, 4.0]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    source = str(tmp_path / "t.parquet")
    data = load_table(source, labels=("x",), patient_column="who", blank="ignore")
    assert data.texts == ["a"] and data.patient_ids.tolist() == ["3"]


def test_policies_and_origin(tmp_path):
    source = write(tmp_path, "csv")
    data = load_table(source, **CHOICE, uncertain="ones", blank="ignore")
    assert data.labels.tolist() == [[1, 0], [0, 1], [-1, 1], [0, 1]]
    assert data.label_origin == "as given in the table (uncertain: ones, blank: ignore)"
    assert data.counts["uncertain labels, taken as positive"] == 1
    assert data.counts["blank labels, taken as unknown"] == 1


@pytest.mark.parametrize(
    ("positive", "negative"),
    [("yes", "No"), ("TRUE", "false"), ("Positive", "negative "), (" 1", "0"), ("1.0", "0.0")],
)
def test_words_for_labels(tmp_path, positive, negative):
    rows = [["a", positive], ["b", negative]]
    path = write_table(tmp_path / "t.csv", ["text", "x"], rows)
    assert load_table(str(path), labels=("x",)).labels.tolist() == [[1], [0]]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_another_encoding_is_guessed_in_the_error_alone(tmp_path, name):
    rows = [b"text,x", "ödem,1".encode(), "ödem,0".encode("cp1252")]
    if name == "t.jsonl":
        rows = [b"", b'{"text": "a", "x": 1}', '{"text": "ö", "x": 1}'.encode("cp1252")]
    (tmp_path / name).write_bytes(b"\n".join(rows))
    with pytest.raises(DataError, match=r"row 3 is not in UTF-8; .*Windows-1252 or Latin-1\?"):
        load_table(str(tmp_path / name), labels=("x",))


def test_columns_that_are_not_used_may_be_in_any_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"text,x,\xe9\na,1,\xe9\n")
    assert load_table(str(tmp_path / "t.csv"), labels=("x",)).texts == ["a"]


def test_excel_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"needs a package .*: pip install 'jaxdp-text\[excel\]'"):
        load_table(str(tmp_path / "t.xlsx"), labels=("x",))


def test_broken_escapes_in_json_are_repaired(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a \\ud800 b", "x": 1}')
    data = load_table(str(tmp_path / "t.jsonl"), labels=("x",))
    assert data.texts == ["a ? b"] and data.counts[REPAIRED] == 1


@pytest.mark.parametrize("name", ["data/reports.csv", "data/Reports.CSV", "data/reports.csv.gz"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(DataError, match=f"{name}.* No such file|{name} does not exist"):
        load_table(name, labels=("x",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", f"text,x\n{CANARY},2\n", r"t.csv: row 2: label 1 of 1 is not 1, yes"),
        ("t.csv", f"text,x\n{CANARY}\n", r"t.csv: row 2 has 1 fields, the header has 2"),
        ("t.csv", f'text,x\n"{CANARY},1\n', r"t.csv: row 2 cannot be read: unexpected end of data"),
        ("t.csv", "", "t.csv is empty"),
        (
            "t.csv",
            f"{CANARY},1\n",
            "none of them 'text' or 'x'; is it a header, or a report",
        ),
        ("t.csv", "text,x\n", "no usable report"),
        ("t.jsonl", f'{{"text": "{CANARY}", "x": 1}}\n["{CANARY}"]', "row 2 is not a JSON object"),
        ("t.jsonl", f'{{"text": "{CANARY}", "x": 1', "row 1 is not a JSON object"),
        ("t.jsonl", f'{{"text": "{CANARY}"}}', "row 1 lacks 'x'"),
        ("t.parquet", CANARY, "t.parquet is not a complete Parquet file"),
        ("t.csv.gz", "text,x", r"row 1 must|no usable report"),
        ("t.csv", f'text;x\n"{CANARY}";1;2\n', r"t.csv: row 2 has 3 fields, the header has 2"),
        (
            "t.csv",
            f"text~x\n{CANARY}~1\n",
            "it has 1 column, .*; is there something else",
        ),
        ("t.csv", f"t\0e\0x\0t\0,\0x\0\n\0{CANARY}", "they are not in UTF-8, as which the file"),
        ("t.csv", f"text,X-ray\n{CANARY},1\n", "it has 2 columns, none of them 'x'$"),
        ("t.json", f'[{{"text": "{CANARY}"}}]', "row 1 lacks 'x'"),
        ("t.json", f'[{{"text": "{CANARY}", "x": 1}}', "row 1 is not a JSON object"),
        ("t.json", f'["{CANARY}"]', "row 1 is not a JSON object"),
        ("t.xlsx", CANARY, "t.xlsx is not a complete Excel workbook, or has a password"),
        ("t.xls", CANARY, r"t.xls is not a table: it must end in .csv, .tsv, .jsonl"),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        load_table(str(tmp_path / name), labels=("x",))
    assert CANARY not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": "s1"}, "row 6 repeats a report id"),
        ({"study": None}, "row 6 has an empty id, patient or split"),
        ({"part": CANARY}, "row 6 has a split that is not one of train"),
        ({"who": "a"}, "1 patients are in more than one split"),
        ({"tags": [1, 0, 1]}, "row 6 has 3 numbers as labels, not 2"),
        ({"tags": f"['{CANARY}"}, "row 6 has a label list that cannot be read"),
    ],
)
def test_unusable_rows(tmp_path, change, message):
    path = tmp_path / "t.jsonl"
    extra = {"study": "s6", "who": "e", "findings": CANARY, "part": "test", "tags": []}
    rows = [*records(), records()[0] | extra | change]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=message) as error:
        load_table(str(path), **CHOICE, label_column="tags")
    assert CANARY not in str(error.value)


def test_a_label_that_no_list_holds_is_a_typing_error(tmp_path):
    choice = CHOICE | {"labels": ("edema", "mas")}
    with pytest.raises(DataError, match="no report carries 'mas' in .*table.jsonl"):
        load_table(write(tmp_path, "jsonl"), **choice, label_column="tags")


def test_labels_must_be_named(tmp_path):
    with pytest.raises(DataError, match="data.labels and data.text_columns must name"):
        load_table("t.csv", labels=())


def test_hub_id_that_cannot_be_had(monkeypatch):
    def refuse(source, streaming):
        assert source == "owner/name" and streaming
        raise ConnectionError(CANARY)

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        DataError, match="owner/name: `datasets` cannot read it .ConnectionError"
    ) as error:
        load_table("owner/name", labels=("x",))
    assert CANARY not in str(error.value)


def test_hub_dataset_is_streamed(monkeypatch):
    rows = datasets.Dataset.from_list(records()).to_iterable_dataset()
    stored = datasets.IterableDatasetDict({"train": rows})
    monkeypatch.setattr(datasets, "load_dataset", lambda source, streaming: stored)
    assert load_table("owner/name", **CHOICE).texts == TEXTS
