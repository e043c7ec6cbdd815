# SPDX-License-Identifier: Apache-2.0
"""Labels for new reports from a release, from good files and from bad ones."""

import csv
import functools
import json
import shutil

import numpy as np
import pyarrow.parquet
import pytest
from helpers_training import LABELS, run_script, smoke_config, write_workspace
from rich.console import Console

from jaxdp.config import ConfigError
from jaxdp.data.dataset import DataError
from jaxdp.evaluation import label_file as module
from jaxdp.evaluation.label_file import Row, label_file, read_rows
from jaxdp.evaluation.predict import ReleasedClassifier
from jaxdp.models.checkpoints import WeightsError
from jaxdp.models.tasks import TASKS
from jaxdp.released import load
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor
from jaxdp.run.train import train
from jaxdp.training.setup import load_inputs

TEXTS = ["heart normal.", "small opacity left.", "no acute effusion", "Enlarged heart, lungs clear"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """As elsewhere, but one for all tests here: none changes the collection, backbone or run."""
    folder = tmp_path_factory.mktemp("workspace")
    return write_workspace(folder)


@pytest.fixture(scope="module")
def release(workspace):
    """Of a finished run."""
    config = smoke_config(
        workspace,
        privacy__epsilon=None,
        train__steps=60,
        train__expected_batch_size=48.0,
        train__learning_rate=0.02,
        head_stage__steps=0,
        run__eval_every=100,
        run__checkpoint_every=100,
    )
    monitor = Monitor(Console(quiet=True))
    train(config, resume=False, interrupt=Interrupt(), monitor=monitor)
    return workspace / "runs" / "smoke" / "release"


def released_classifier(release, workspace):
    return ReleasedClassifier(release, base_model=str(workspace / "backbone"))


def write_csv(path, texts, column="text"):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", column], *([i, t] for i, t in enumerate(texts))])
    return path


def read_output(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_release_alone_repeats_the_runs_own_test_metrics(release, workspace):
    config = smoke_config(workspace)
    inputs = load_inputs(config)
    texts = inputs.dataset.subset("test").texts
    for path in release.rglob("*.*"):
        assert str(workspace).encode() not in path.read_bytes(), f"{path.name} names a folder here"
    moved = workspace / "elsewhere"
    shutil.copytree(release, moved)
    with pytest.raises(ConfigError, match="backbone 'backbone' is no directory here.*--base_model"):
        ReleasedClassifier(moved)  # it does not know where this machine keeps the weights
    probabilities = released_classifier(moved, workspace).predict_proba(texts)
    decided = (probabilities >= 0.5).sum(axis=0)
    metrics = json.loads((release.parent / "metrics.json").read_text())["test"]["per_label"]
    assert [metrics[name]["predicted"] for name in LABELS] == decided.tolist()
    assert decided.sum() > 0


def test_script_labels_csv_and_jsonl_alike(release, workspace):
    write_csv(workspace / "new.csv", TEXTS)
    (workspace / "new.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    outputs = []
    for kind in ("csv", "jsonl"):
        target = workspace / f"{kind}.out.csv"
        done = run_script(
            "predict.py",
            f"--run={release.parent}",
            f"--input={workspace / f'new.{kind}'}",
            f"--output={target}",
        )
        assert done.returncode == 0, done.stderr
        assert "4 reports labelled, 0 rows skipped" in done.stdout
        outputs.append(target.read_text())
    assert outputs[0] == outputs[1]
    rows = read_output(workspace / "csv.out.csv")
    assert [row["row"] for row in rows] == ["1", "2", "3", "4"]
    expected = released_classifier(release, workspace).predict_proba(TEXTS)
    for row, values in zip(rows, expected, strict=True):
        for name, value in zip(LABELS, values, strict=True):
            assert float(row[f"probability_{name}"]) == pytest.approx(value, abs=1e-6)
            assert int(row[name]) == (value >= 0.5)


def test_chunks_do_not_change_the_labels(release, workspace, monkeypatch):
    texts = [TEXTS[i % 4] + " right" * (i % 7) for i in range(50)]
    write_csv(workspace / "new.csv", texts)
    classifier = released_classifier(release, workspace)
    outputs = []
    for chunk in (7, 2048):
        monkeypatch.setattr(module, "CHUNK", chunk)
        target = workspace / f"{chunk}.csv"
        labelled, _ = label_file(
            classifier, workspace / "new.csv", target, text_column="text", skip_bad_rows=False
        )
        assert labelled == 50
        outputs.append(read_output(target))
    for left, right in zip(*outputs, strict=True):
        for name in LABELS:
            # other microbatch shapes, hence float32 sums in another order
            key = f"probability_{name}"
            assert float(left[key]) == pytest.approx(float(right[key]), abs=2e-6)


def test_rows_are_read_lazily(tmp_path):
    path = tmp_path / "endless.csv"
    path.write_text("text\nfirst\nsecond\n")
    rows = read_rows(path, "text")
    assert (next(rows).number, next(rows).text) == (1, "second")


@pytest.mark.parametrize(
    "name, content, problems",
    [
        (
            "a.csv",
            'id,text\n1,good\n2\n3,nan\n\n4,ok,surplus\n5,"a"b\n6,c\n',
            {2: "1 fields", 3: "no text", 4: "3 f", 5: "cannot be read"},
        ),
        (
            "a.jsonl",
            '{"text": "good"}\n{"text": 3}\nnonsense\n\n{"other": "x"}\n{"text": "b"}\n\n',
            {2: "no string in 'text'", 3: "is not a JSON object", 4: "lacks 'text'"},
        ),
        ("a.json", '[{"text": "good"}, {"text": null}, 3]', {2: "no text", 3: "not a JSON object"}),
        ("a.tsv", "text\tid\ngood\t1\n \t2\n", {2: "no text"}),
        ("a.csv", "\ufeffid;text\n1;good\n2;\n", {2: "no text"}),
        ("a.csv", "text\ngood\nr\udce9sum\udce9\nb\n", {2: "is not in UTF-8; save"}),
    ],
)
def test_bad_rows_are_named_by_number(tmp_path, name, content, problems):
    path = tmp_path / name
    path.write_text(content, errors="surrogateescape")
    rows = list(read_rows(path, "text"))
    assert {row.number for row in rows if row.problem} == set(problems)
    assert rows[0] == Row(1, "good") and len(rows) - len(problems) in (1, 2)
    for row in rows:
        assert problems.get(row.number, "") in (row.problem or "")


class Constant:
    labels, task = ("a",), TASKS["multi-label"]

    def predict_proba(self, texts):
        return np.full((len(texts), 1), 0.5)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("in.csv", "study,text\ns1,good\n007,too\ns3,\n", "has no text"),
        (
            "in.json",
            '[{"text": "good", "study": "s1"}, {"text": "too", "study": "007"}, '
            '{"text": "x", "study": [1]}]',
            "has no string or integer in 'study'",
        ),
        (
            "in.jsonl",
            '{"text": "good", "study": "s1"}\n{"text": "too", "study": "007"}\n{"text": "x"}\n',
            "lacks 'study'",
        ),
    ],
)
def test_ids_are_kept_where_they_are_asked_for(tmp_path, name, content, problem, monkeypatch):
    source, target = tmp_path / name, tmp_path / "out.csv"
    source.write_text(content)
    label = functools.partial(
        label_file, Constant(), source, target, text_column="text", skip_bad_rows=True
    )
    assert [row.problem for row in label(id_column="study")[1]] == [problem]
    rows = read_output(target)
    assert list(rows[0]) == ["row", "study", "a", "probability_a"]
    assert [row["study"] for row in rows] == ["s1", "007"]
    label()
    assert "study" not in read_output(target)[0]
    for taken in ("row", "a", "probability_a"):
        with pytest.raises(DataError, match=f"--id_column '{taken}' is the name of another col"):
            label(id_column=taken)
    monkeypatch.setattr(Constant, "labels", ("row",))
    with pytest.raises(DataError, match="two columns of the output would be called 'row'"):
        label()


def test_every_format_holds_the_same(release, workspace):
    source = workspace / "in.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("text", "study"), *((t, f"s{i}") for i, t in enumerate(TEXTS))]
        )
    classifier, tables = released_classifier(release, workspace), []
    for suffix in (".csv", ".jsonl", ".parquet"):
        target = workspace / f"out{suffix}"
        options = {"text_column": "text", "skip_bad_rows": False, "id_column": "study"}
        label_file(classifier, source, target, **options)
        tables.append(rows_of(target))
    assert list(tables[0][0]) == list(tables[1][0]) == list(tables[2][0])
    assert [[str(v) for v in row.values()] for row in tables[1]] == [
        list(row.values()) for row in tables[0]
    ]
    assert tables[1] == tables[2]
    assert tables[1][0]["row"] == 1 and tables[1][0]["study"] == "s0"
    with pytest.raises(DataError, match=r"out.xlsx must end in .csv, .jsonl, .parquet"):
        label_file(classifier, source, workspace / "out.xlsx", **options)


def rows_of(path):
    if path.suffix == ".csv":
        return read_output(path)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("least, decided", [(0.5, "1"), (0.51, "0"), (0.2, "1")])
def test_a_threshold_is_the_least_probability_that_is_a_one(tmp_path, least, decided):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("text\ngood\n")
    options = {"text_column": "text", "skip_bad_rows": False}
    label_file(Constant(), source, target, **options, thresholds={"a": least})
    assert read_output(target)[0]["a"] == decided


@pytest.mark.parametrize(
    "given, words",
    [
        ({"b": 0.5}, "thresholds: 'b' is no label; labels are a"),
        ({"a": 0}, "thresholds: of 'a' must be a number in"),
        ({"a": True}, "thresholds: of 'a' must be a number in"),
        ({"a": "0.5"}, "thresholds: of 'a' must be a number in"),
        ([0.5], "thresholds must be an object"),
    ],
)
def test_a_threshold_that_cannot_be_meant_is_refused(tmp_path, given, words):
    (tmp_path / "in.csv").write_text("text\ngood\n")
    with pytest.raises(DataError, match=words):
        label_file(
            Constant(), tmp_path / "in.csv", tmp_path / "out.csv",
            text_column="text", skip_bad_rows=False, thresholds=given,
        )  # fmt: skip
    assert not (tmp_path / "out.csv").exists()


def test_an_id_column_that_is_not_there_is_named(tmp_path):
    write_csv(tmp_path / "in.csv", TEXTS)
    with pytest.raises(DataError, match="it has 2 columns, none of them 'accession'"):
        list(read_rows(tmp_path / "in.csv", "text", "accession"))


def test_probabilities_are_never_written_as_certain(release, workspace):
    classifier = released_classifier(release, workspace)
    logits = np.array([[900, 40, 20], [19, -19, -20], [-900, -104, 0]], np.float32)
    classifier._logits = lambda *_: logits
    write_csv(workspace / "in.csv", TEXTS[:3])
    label_file(
        classifier,
        workspace / "in.csv",
        workspace / "o.csv",
        text_column="text",
        skip_bad_rows=False,
    )
    rows = read_output(workspace / "o.csv")
    written = np.array([[float(row[f"probability_{name}"]) for name in LABELS] for row in rows])
    assert ((0 < written) & (written < 1)).all()
    # What a float64 can tell apart stays apart, in the order of the logits.
    assert written[0, 2] > written[1, 0] and written[1, 1] > written[1, 2] > written[2, 1]
    inner = np.abs(logits) < 30
    np.testing.assert_allclose(np.log(written / (1 - written))[inner], logits[inner], rtol=1e-6)
    assert [[int(row[name]) for name in LABELS] for row in rows] == (logits >= 0).tolist()


def test_bad_rows_fail_or_are_skipped_by_flag(tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("text\ngood\n\n" + '""\n' + "secret words,again\nlast\n")
    with pytest.raises(DataError, match="row 2") as error:
        label_file(Constant(), source, target, text_column="text", skip_bad_rows=False)
    assert "secret" not in str(error.value)
    assert list(tmp_path.iterdir()) == [source], "a failed run leaves no output"
    labelled, skipped = label_file(
        Constant(), source, target, text_column="text", skip_bad_rows=True
    )
    numbers = [row["row"] for row in read_output(target)]
    assert labelled == len(numbers) == 2
    assert [row.number for row in skipped] == [2, 3]
    assert numbers == ["1", "4"]
    # at the threshold is positive
    assert read_output(target)[0]["a"] == "1"


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("missing.csv", None, "does not exist"),
        ("a.txt", b"", "a.txt is not a table: it must end in .csv, .tsv, .jsonl"),
        ("a.csv", b"", "a.csv is empty"),
        ("b.csv", b"report\nx\n", "it has 1 column, none of them 'text'"),
        ("c.csv", "text\nab".encode("utf-16")[:-1], "c.csv is not complete UTF-16"),
    ],
)
def test_unreadable_inputs_are_one_error(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        list(read_rows(tmp_path / name, "text"))


def test_not_a_release_is_said(tmp_path):
    (tmp_path / "adapter").mkdir()
    for place in (tmp_path / "nothing", tmp_path / "adapter"):
        with pytest.raises(DataError, match=r"expected the release/ of a finished run"):
            load(place)
    with pytest.raises(WeightsError, match="privacy.json"):
        load(tmp_path)  # without a statement


def test_texts_are_asked_for_by_name(release, workspace):
    classifier = load(release.parent)  # a run knows where its backbone was
    wrong = (["secret", None], r"texts\[1\] has no text"), ("secret", "texts must be a list")
    for ask in (classifier.predict, classifier.predict_proba, classifier.evidence):
        for texts, words in wrong:
            with pytest.raises(DataError, match=words) as error:
                ask(texts)
            assert "secret" not in str(error.value)
    with pytest.raises(DataError, match="evidence needs label attention; this release pools by"):
        classifier.evidence(TEXTS)
    decided = classifier.predict(np.array(TEXTS))
    np.testing.assert_array_equal(decided, classifier.predict_proba(TEXTS) >= 0.5)
    assert classifier.privacy["epsilon"] is None
    assert classifier.explain_privacy() == (release / "PRIVACY.md").read_text()
