# SPDX-License-Identifier: Apache-2.0
"""Strings planted in reports, in ids and in file names that are ids show up nowhere: not in what a
script prints, not in what it writes, and not when it fails on the very row that holds them.

Whoever finds one more way to fail adds it here.
"""

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers_canaries import (
    CONFIG,
    PATIENT,
    PLANTED,
    PRIVATE,
    REPORT,
    SOUND,
    STUDY,
    SUBJECT,
    TAUGHT,
    TEXT,
    TRAIN,
    VOLUME,
    ctrate,
    mimic,
    openi,
    padchest,
    run_scripts,
    source,
    table,
    teacher,
)
from helpers_data import CTRATE_PATHS, openi_xml, write_table

from jaxdp.data.dataset import DataError
from jaxdp.evaluation.label_file import label_file
from jaxdp.models.tasks import TASKS

# --- failures: name -> (writes the input, what the error says) ----------------------------------

BROKEN: dict[str, tuple[Callable[[Path], list[str]], str]] = {}


def broken(message: str):
    def register(write):
        BROKEN[write.__name__] = (write, message)
        return write

    return register


@broken("XML file 61, line 1: not well-formed")
def openi_not_xml(folder):
    return openi(folder, **{f"{REPORT}x": f"<a>{TEXT} & {PATIENT}</a>".encode()})


@broken("XML file 61, line 1: undefined entity")
def openi_entity(folder):
    return openi(folder, **{f"{REPORT}x": f"<a>&{TEXT};</a>".encode()})


@broken("repeats a report id")
def openi_same_id(folder):
    return openi(folder, **{f"again/{REPORT}1": openi_xml(None, TEXT)})


@broken("is not a complete tar archive")
def openi_cut(folder):
    flags = openi(folder)
    (folder / "r.tgz").write_bytes((folder / "r.tgz").read_bytes()[:-30])
    return flags


def mimic_table(folder: Path, name: str, change: Callable[[str], str]) -> list[str]:
    flags = mimic(folder)
    (path,) = folder.rglob(f"*-{name}.csv.gz")
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()).decode()).encode()))
    return flags


@broken("row 42: label 1 of 1 is not 1, yes")
def mimic_label(folder):
    row = f"{SUBJECT},{STUDY + 99},,,,{TEXT},,,,,,,,,,\n"
    return mimic_table(folder, "chexpert", lambda text: text + row)


@broken("row 1 must name the columns")
def mimic_labels_without_header(folder):
    return mimic_table(folder, "chexpert", lambda text: f"{TEXT},{SUBJECT},{STUDY},Edemas\n" + text)


@broken("row 42 repeats a study")
def mimic_study_twice(folder):
    row = f"{SUBJECT},{STUDY}" + "," * 14 + "\n"
    return mimic_table(folder, "chexpert", lambda text: text + row)


@broken("row 2 has a split that is not")
def mimic_split(folder):
    return mimic_table(folder, "split", lambda text: text.replace("train", TEXT))


@broken("row 2 has no whole number")
def mimic_subject_that_is_no_number(folder):
    return mimic_table(folder, "split", lambda text: text.replace(f",{SUBJECT},", f",{TEXT},"))


@broken("row 2 has no whole number")
def mimic_digit_that_is_no_number(folder):
    return mimic_table(folder, "split", lambda text: text.replace(f",{SUBJECT},", f",{SUBJECT}²,"))


@broken("1 patients are in more than one split")
def mimic_patient_in_two_splits(folder):
    return mimic_table(
        folder, "split", lambda t: t.replace(f"{STUDY},{SUBJECT},train", f"{STUDY},{SUBJECT},test")
    )  # noqa: E501


@broken("holds two reports of one study")
def mimic_two_reports(folder):
    flags = mimic(folder)
    (there,) = folder.rglob(f"s{STUDY}.txt")
    shutil.copytree(there.parent, there.parents[1] / f"p{SUBJECT + 50}")
    return flags


@broken("holds a report or folder that cannot be read")
def mimic_report_that_cannot_be_read(folder):
    flags = mimic(folder)
    (there,) = folder.rglob(f"s{STUDY}.txt")
    there.unlink()
    there.mkdir()
    return flags


@broken("damaged: a report in it cannot be read")
def mimic_encrypted_archive(folder):
    flags = mimic(folder)
    with zipfile.ZipFile(folder / "mimic" / "mimic-cxr-reports.zip", "w") as archive:
        for path in folder.rglob("s*.txt"):
            archive.write(path, f"files/p17/p{SUBJECT}/{path.name}")
    content = bytearray(Path(archive.filename).read_bytes())
    position = content.find(b"PK\x01\x02")
    while position >= 0:  # the first flag in the central directory: encrypted
        content[position + 8] |= 1
        position = content.find(b"PK\x01\x02", position + 4)
    Path(archive.filename).write_bytes(content)
    return flags


@broken("does not hold MIMIC-CXR")
def mimic_root_is_a_group_of_patients(folder):
    mimic(folder)
    return source("mimic", folder / "mimic" / "mimic-cxr" / "2.0.0" / "files" / "p17")


def ctrate_table(folder: Path, which: tuple[str, str], *lines: str) -> list[str]:
    flags = ctrate(folder)
    with (folder / "ct" / CTRATE_PATHS[which]).open("a") as file:
        file.writelines(line + "\n" for line in lines)
    return flags


@broken("row 62 has no VolumeName like train_53_a_1")
def ctrate_volume(folder):
    return ctrate_table(folder, ("train", "reports"), f"{VOLUME}_{TEXT},,,{TEXT},{TEXT}")


@broken("row 62: label 1 of 1 is not 1, yes")
def ctrate_label(folder):
    return ctrate_table(folder, ("train", "labels"), f"{VOLUME}_a_1" + f",{TEXT}" * 18)


@broken("row 62 cannot be read: unexpected end of data")
def ctrate_quote(folder):
    return ctrate_table(folder, ("train", "reports"), f'{VOLUME}_a_1,"{TEXT}')


@broken("does not hold CT-RATE")
def ctrate_root_is_a_folder_of_volumes(folder):
    root = folder / "train"
    for i in range(20):
        (root / f"{VOLUME}{i}").mkdir(parents=True)
    return source("ctrate", root)


@broken("row 82 gives its report another text")
def padchest_two_texts(folder):
    return padchest(folder, (f"{REPORT}1", PATIENT, f"{TEXT} other", "['normal']", "Physician"))


@broken("row 82 has a MethodLabel not in")
def padchest_method(folder):
    return padchest(folder, (REPORT, PATIENT, TEXT, "['normal']", TEXT))


@broken("row 82 has no ReportID or no PatientID")
def padchest_no_patient(folder):
    return padchest(folder, (REPORT, "", TEXT, "['normal']", "Physician"))


def table_cases() -> None:
    """The same bad rows in each format."""
    new = [f"{REPORT}x", f"{PATIENT}x", f"{TEXT} x", 1, "train", "edema"]
    rows = {
        "label": ([*new[:3], TEXT, *new[4:]], "label 1 of 1 is not 1, yes"),
        "number": ([*new[:3], 0.5, *new[4:]], "label 1 of 1 is not 1, yes"),
        "same_id": ([f"{REPORT}1", *new[1:]], "repeats a report id"),
        "no_id": (["", *new[1:]], "has an empty id, patient or split"),
        "split": ([*new[:4], TEXT, "edema"], "has a split that is not one of"),
        "two_splits": ([new[0], f"{PATIENT}9", *new[2:]], "1 patients are in more than one"),
        "list": ([*new[:5], f"['{TEXT}"], "has a label list that cannot be read"),
        "numbers": ([*new[:5], "[1, 0, 1]"], "has 3 numbers as labels"),
    }
    for suffix in ("csv", "jsonl", "parquet"):
        for name, (row, message) in rows.items():
            more = ("--config.data.label_column=tags",) if name in ("list", "numbers") else ()

            def write(folder, row=row, suffix=suffix, more=more):
                return table(folder / f"t.{suffix}", row, more=more)

            BROKEN[f"{suffix}_{name}"] = (write, message)


table_cases()


@broken("row 62 has 2 fields, the header has 6")
def csv_fields(folder):
    return table(folder / "t.csv", f"{REPORT},{TEXT}\n")


@broken("row 62 cannot be read: unexpected end of data")
def csv_quote(folder):
    return table(folder / "t.csv", f'{REPORT},"{TEXT}\n')


@broken("row 1 must name the columns")
def csv_without_header(folder):
    flags = table(folder / "t.csv")
    # cells near to the names that are looked for
    (folder / "t.csv").write_text(f"{TEXT},studys,texts,{PATIENT}\n")
    return flags


@broken("row 61 is not a JSON object")
def jsonl_broken(folder):
    return table(folder / "t.jsonl", f'{{"study": "{REPORT}", "text": "{TEXT}" 1')


@broken("row 61 lacks 'edema'")
def jsonl_field(folder):
    return table(folder / "t.jsonl", json.dumps({"study": REPORT, "text": TEXT}))


@broken("row 61 has a text, id, patient or split that is no string or number")
def jsonl_text(folder):
    return table(folder / "t.jsonl", [REPORT, PATIENT, [TEXT], 1, "train", "edema"])


@broken("holds text that is not UTF-8")
def parquet_encoding(folder):
    flags = table(folder / "t.parquet")
    content = (folder / "t.parquet").read_bytes()
    planted = f"{TEXT} enlarged".encode()
    # Parquet stores the strings of a dictionary page as they are, if it is not compressed
    data = pq.read_table(folder / "t.parquet")
    pq.write_table(data, folder / "t.parquet", compression="none", use_dictionary=False)
    content = (folder / "t.parquet").read_bytes()
    (folder / "t.parquet").write_bytes(content.replace(planted, b"\xff" + planted[1:]))
    return flags


@broken("`datasets` cannot read it")
def datasets_folder(folder):
    # declared types make the library complain about the value
    (folder / "d").mkdir()
    card = "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n"
    card += "  - name: edema\n    dtype: int64\n  splits:\n  - name: train\n---\n"
    (folder / "d" / "README.md").write_text(card)
    write_table(folder / "d" / "train.csv", ["text", "edema"], [["fine", 1], ["x", TEXT]])
    return source("table", folder / "d", "--config.data.labels=('edema',)")


@broken("row 62 repeats an id")
def teacher_id_twice(folder):
    return teacher(folder, [*TAUGHT, TAUGHT[0]])


@broken("row 62: label 1 of 1 is not 1, yes")
def teacher_label(folder):
    return teacher(folder, [*TAUGHT, [f"{REPORT}x", TEXT]])


@broken("1 reports without teacher labels")
def teacher_lacks_one(folder):
    return teacher(folder, TAUGHT[1:])


@broken("1 teacher labels without a report")
def teacher_has_one_more(folder):
    return teacher(folder, [*TAUGHT, [f"{REPORT}x", 1]])


@broken("row 1 must name the columns")
def teacher_without_header(folder):
    return teacher(folder, TAUGHT, header=(REPORT, "edemas"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Every failure; on MIMIC-CXR also a private run, its predictions and a look at the data."""
    root = tmp_path_factory.mktemp("canaries")
    folder = {name: root / name for name in [*BROKEN, "train", "inspect", "predict"]}
    for path in folder.values():
        (path / "runs").mkdir(parents=True)
    cases = {name: [*TRAIN, *write(folder[name])] for name, (write, _) in BROKEN.items()}
    flags = mimic(folder["train"])
    head = ("--config.train.mode=head", "--config.head_stage.steps=0", "--config.train.steps=3")
    noise = "--config.privacy.noise_multiplier=40"  # finding it would take a second
    cases["train"] = [*PRIVATE, *head, noise, *flags]
    out = folder["inspect"] / "runs"
    cases["inspect"] = [
        "inspect_data.py",
        CONFIG,
        *flags,
        f"--output={out}",
        f"--json={out}/s.json",
    ]
    new = [{"id": REPORT, "text": f"{TEXT} heart"}, {"id": PATIENT, "text": [TEXT]}]
    (folder["predict"] / "new.jsonl").write_text("\n".join(map(json.dumps, new)))
    cases["predict"] = [
        "predict.py", f"--run={folder['train']}/runs/smoke", "--bad_rows=skip",
        f"--input={folder['predict']}/new.jsonl", f"--output={folder['predict']}/runs/labels.csv",
    ]  # fmt: skip
    return run_scripts(root, cases)


@pytest.mark.parametrize("name", BROKEN)
def test_failing_on_the_row_tells_the_place_alone(outcomes, name):
    outcome = outcomes[name]
    outcome.assert_clean()
    assert outcome.status == 1, outcome.stderr
    assert outcome.stderr.startswith("error: ") and outcome.stderr.count("\n") == 1
    assert BROKEN[name][1] in outcome.stderr
    # a row that should have been the header may be a report
    assert "nearly" not in outcome.stderr


def test_a_finished_run_holds_nothing_of_the_reports(outcomes):
    outcome = outcomes["train"]
    outcome.assert_clean()
    assert outcome.status == 0, outcome.stderr
    run = outcome.folder / "runs" / "smoke"
    # exact counts of the private data stay out of what may be shared
    assert json.loads((run / "private" / "patients.json").read_text())["largest"]["reports"] == 3
    assert "largest patient: 3 reports" in outcome.stdout
    released = (run / "release" / "privacy.json").read_text()
    assert "3" not in json.loads(released)["group_epsilon"] and "largest" not in released


def test_looking_at_the_data_shows_no_report(outcomes):
    outcome = outcomes["inspect"]
    outcome.assert_clean()
    assert outcome.status == 0 and "reports per patient, largest" in outcome.stdout
    assert len(list((outcome.folder / "runs").iterdir())) == 3


def test_predictions_hold_row_numbers_instead_of_reports(outcomes):
    outcome = outcomes["predict"]
    outcome.assert_clean()
    assert outcome.status == 0 and "skipped row 2" in outcome.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            f"{TEXT},{PATIENT}\n{TEXT}\n",
            "none of them 'text'; is it a header, or a",
        ),
        ("a.csv", f"text\n{TEXT}\n{TEXT},{PATIENT}\n", "row 2 has 2 fields"),
        ("a.csv", f'text\n{TEXT}\n"{TEXT}', "row 2 cannot be read: unexpected end"),
        ("a.csv", f"text\n{TEXT} \xe9\n", "row 1 is not in UTF-8"),
        ("a.csv", f'id,text\n{REPORT},""\n', "row 1 has no text"),
        ("a.jsonl", f'{{"text": "{TEXT}" {PATIENT}\n', "row 1 is not a JSON object"),
        ("a.jsonl", f'{{"id": "{REPORT}", "text": ["{TEXT}"]}}\n', "row 1 has no string in 'text'"),
    ],
)
def test_labelling_fails_on_the_row_and_tells_the_place_alone(tmp_path, name, content, message):
    class Constant:
        labels, task = ("a",), TASKS["multi-label"]

        def predict_proba(self, texts):
            return np.full((len(texts), 1), 0.5)

    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message) as error:
        label_file(
            Constant(),
            tmp_path / name,
            tmp_path / "out.csv",
            text_column="text",
            skip_bad_rows=False,
        )
    assert not [s for s in PLANTED if s in str(error.value).encode()]


@pytest.mark.slow
def test_private_runs_on_every_source_hold_nothing_of_the_reports(tmp_path):
    cases = {}
    for name, write in SOUND.items():
        (tmp_path / name).mkdir()
        cases[name] = [*PRIVATE, *write(tmp_path / name)]
    for name, outcome in run_scripts(tmp_path, cases).items():
        outcome.assert_clean()
        assert outcome.status == 0, f"{name}: {outcome.stderr}"
        assert (outcome.folder / "runs" / "smoke" / "release" / "PRIVACY.md").exists()
