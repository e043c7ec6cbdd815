# SPDX-License-Identifier: Apache-2.0
"""One class per text: by hand, beside slow oracles, and through a whole run."""

import csv
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import scipy.special
import sklearn.metrics
import torch
import transformers
from flax import nnx
from helpers_data import write_table
from helpers_models import IGNORE_PEFT
from helpers_training import (
    REPOSITORY,
    VOCABULARY,
    WORDS,
    run_script,
    smoke_config,
    write_backbone,
)
from rich.console import Console

from jaxdp import PrivateTextClassifier, dp, released
from jaxdp.audit.config import AuditConfig
from jaxdp.backbone import Backbone, load_finetuned
from jaxdp.commands.export import run as export
from jaxdp.config import TASKS as IN_CONFIG
from jaxdp.config import Config, ConfigError, DataConfig
from jaxdp.data.arrays import classes_of, has_one_class
from jaxdp.data.dataset import DataError
from jaxdp.data.phrasebook import Phrasebook, Shape
from jaxdp.evaluation.label_file import label_file
from jaxdp.evaluation.metrics import classification_metrics, reliability, scores
from jaxdp.evaluation.predict import ReleasedClassifier
from jaxdp.evaluation.predictions import TestPredictions
from jaxdp.evaluation.statistics import f1_scores
from jaxdp.models.checkpoints import Description, WeightsError
from jaxdp.models.label_attention import LabelHead
from jaxdp.models.peft import torch_class
from jaxdp.models.tasks import TASKS
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor
from jaxdp.run.release_check import check_release
from jaxdp.run.train import train
from jaxdp.training import trainer
from jaxdp.training.randomness import RunSecret
from jaxdp.training.warm_start import build_model

CLASSES = ("effusion", "normal", "other")
TASK = TASKS["multi-class"]


def one_hot(classes, count=3):
    return (np.arange(count) == np.asarray(classes)[..., None]).astype(np.int8)


# The loss, and its gradient.


def test_the_loss_is_minus_the_log_probability_of_the_class():
    logits = np.random.default_rng(0).standard_normal((7, 4)) * 5
    classes = np.array([0, 1, 2, 3, 0, 1, 2])
    with jax.enable_x64(True):
        for row, chosen in zip(logits, classes, strict=True):
            by_hand = -np.log(np.exp(row[chosen]) / np.exp(row).sum())
            found = TASK.loss(jnp.asarray(row), jnp.asarray(one_hot(chosen, 4)))
            assert found.shape == () and found == pytest.approx(by_hand, rel=1e-12)
    far = TASK.loss(jnp.array([1e4, -1e4]), jnp.array([0, 1], jnp.int8))
    assert far == 2e4  # and not infinite
    unknown = jax.grad(TASK.loss)(jnp.array([3.0, 1.0]), jnp.array([-1, -1], jnp.int8))
    assert not unknown.any()


@pytest.mark.parametrize("head", [nnx.Linear, LabelHead])
def test_a_heads_clipped_gradients_are_those_of_jax_grad_one_by_one(head):
    """The closed form (p - y) f of a stage on cached features, never formed, beside the whole
    gradient of each report alone: norms, clipping and sum."""
    with jax.enable_x64(True):
        rng, count, width = np.random.default_rng(1), 9, 5
        module = head(width, 3, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        graphdef, state = nnx.split(module)
        shape = (count, 1, 3, width) if head is LabelHead else (count, 1, width)
        features = jnp.asarray(rng.standard_normal(shape) * 2)
        labels = jnp.asarray(one_hot(rng.integers(0, 3, count)))

        def loss(state, feature, labels):
            return TASK.loss(nnx.merge(graphdef, state)(feature[0]), labels)

        each = [jax.grad(loss)(state, f, y) for f, y in zip(features, labels, strict=True)]
        slow = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in each]
        norms = np.array([np.linalg.norm(g) for g in slow])
        clip = float(np.median(norms))
        wanted = sum(g * min(1, clip / n) for g, n in zip(slow, norms, strict=True))

        fast = dp.clipped_gradient_sum(loss, clip, trainer._head_value_and_grad)
        total, found = fast(state, features, labels, is_padding=jnp.zeros(count, bool))
        np.testing.assert_allclose(found.norm, norms, rtol=1e-12)
        assert (norms > clip).any() and (norms < clip).any()
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(total)])
        np.testing.assert_allclose(flat, wanted, rtol=1e-11, atol=1e-13)
        # The bias' part is p - y, by hand.
        logits = np.array([module(f[0]) for f in features])
        right = scipy.special.softmax(logits, axis=1) - np.asarray(labels)
        np.testing.assert_allclose([g["bias"][...] for g in each], right, atol=1e-14)


# Decisions and metrics.

SAID = np.array(
    [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.4, 0.4, 0.2]]
)
TRUE = [0, 1, 1, 2, 0]


def test_the_likeliest_class_is_decided_whatever_its_probability():
    assert TASK.decide(SAID).argmax(1).tolist() == [0, 0, 1, 2, 0]
    assert (TASK.decide(SAID).sum(1) == 1).all(), "a tie is one class"
    low = np.array([0.3, 0.36, 0.34])
    assert TASK.decide(low).tolist() == [False, True, False]
    members = np.stack([SAID, SAID[:, ::-1]])
    assert TASK.decide(members).shape == members.shape
    names = np.array(["a", "b", "c"])
    assert TASK.answers(TASK.decide(SAID), names).tolist() == ["a", "a", "b", "c", "a"]


def test_metrics_are_those_of_a_hand_and_of_scikit_learn():
    """Decided 0 0 1 2 0, there are 0 1 1 2 0: class 0 has F1 2*2/(3+2), class 1 2*1/(1+2)."""
    found = classification_metrics(SAID, one_hot(TRUE), ("a", "b", "c"), "multi-class")
    f1 = [4 / 5, 2 / 3, 1.0]
    assert [row["f1"] for row in found["per_label"].values()] == pytest.approx(f1)
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert found["weighted_f1"] == pytest.approx((2 * f1[0] + 2 * f1[1] + f1[2]) / 5)
    assert found["accuracy"] == found["micro_f1"] == pytest.approx(4 / 5)
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert found["log_loss"] == pytest.approx(-np.log([0.6, 0.4, 0.5, 0.6, 0.4]).mean())
    assert found["threshold"] is None and found["reports"] == 5
    assert set(scores(found)) == {
        "weighted_f1", "micro_f1", "macro_f1", "accuracy", "balanced_accuracy",
    }  # fmt: skip

    rng = np.random.default_rng(3)
    p, y = rng.dirichlet(np.ones(4), 400), rng.integers(0, 3, 400)  # class 3 is nowhere
    found = classification_metrics(p, one_hot(y, 4), tuple("abcd"), "multi-class")
    decided = p.argmax(1)
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, decided))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = sklearn.metrics.balanced_accuracy_score(y, decided)
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    for average in ("macro", "weighted"):
        wanted = sklearn.metrics.f1_score(
            y, decided, average=average, labels=range(4), zero_division=0
        )
        assert found[f"{average}_f1"] == pytest.approx(wanted)
    assert found["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(y, p, labels=range(4)), rel=1e-6
    )
    # What a sweep's page resamples is the same.
    counted = f1_scores(TASK.decide(p)[None], one_hot(y, 4))
    for name in ("weighted_f1", "micro_f1", "macro_f1", "balanced_accuracy"):
        assert counted[name][0] == pytest.approx(found[name])


def test_calibration_is_that_of_the_class_decided_on():
    bins = reliability(SAID, one_hot(TRUE), "multi-class")
    assert bins[:, 0].sum() == 5, "one answer for each text"
    assert bins[:, 1].sum() == pytest.approx(0.6 + 0.5 + 0.5 + 0.6 + 0.4)
    assert bins[:, 2].sum() == 4
    found = classification_metrics(SAID, one_hot(TRUE), ("a", "b", "c"), "multi-class")
    # said 0.6 twice, both right; 0.5 twice, one right; 0.4 once, right
    by_hand = (abs(1.2 - 2) + abs(1.0 - 1) + abs(0.4 - 1)) / 5
    assert found["expected_calibration_error"] == pytest.approx(by_hand)


# Settings.


def settings(**changes):
    values = {"data": {"source": "table", "task": "multi-class", "label_column": "class"}}
    values["data"] |= {"labels": CLASSES}
    for name, value in changes.items():
        section, field = name.split("__")
        values.setdefault(section, {})[field] = value
    return values | {"privacy": {"units": 1000, **values.get("privacy", {})}}


def test_a_task_has_one_name_everywhere():
    assert tuple(TASKS) == IN_CONFIG
    assert DataConfig().task == Description.task == IN_CONFIG[0]
    config = transformers.BertConfig(problem_type=TASK.problem_type)
    assert config.problem_type == "single_label_classification"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__task": "ordinal"}, "config.data.task must be multi-label or multi-class"),
        ({"data__source": "openi"}, "config.data.source must be table where data.task is multi"),
        ({"data__labels": ("only",)}, "config.data.labels must be at least two classes"),
        ({"teacher__path": "t.csv", "teacher__origin": "t"}, "config.teacher.path must be None"),
    ],
)
def test_settings_that_do_not_go_with_one_class_are_named(changes, words):
    Config.from_dict(settings())
    with pytest.raises(ConfigError, match=words) as error:
        Config.from_dict(settings(**changes))
    assert "\n" not in str(error.value)


def test_an_audit_is_for_the_loss_that_its_canaries_are_made_for():
    values = settings(train__mode="head", train__expected_batch_size=1000.0)
    with pytest.raises(ConfigError, match='config.data.task must be "multi-label" for an audit'):
        AuditConfig.from_dict(values)


def test_the_recipe_puts_classes_into_sentences_unless_they_are_numbers():
    auto = {"train__recipe": "auto"}
    named = Config.from_dict(settings(**auto))
    assert named.warm_start.phrasebook == "labels"
    numbered = settings(**auto, data__labels=("0", "1", "2"))
    assert Config.from_dict(numbered).warm_start.phrasebook is None
    numbered["warm_start"] = {"synonyms": ("0: none", "1: mild", "2: severe")}
    assert Config.from_dict(numbered).warm_start.phrasebook == "labels"
    several = settings(**auto, data__labels=("0", "1"), data__task="multi-label")
    assert Config.from_dict(several).warm_start.phrasebook == "labels", "as before"


@pytest.mark.parametrize("names", [("normal", "effusion", "nodule"), ("effusion", "nodule")])
def test_made_up_reports_have_one_class(names):
    book = Phrasebook.of_labels(names, "en")
    shape = Shape(normal=0.3, findings=1.5, denied=0.6, repeated=0.5, other=0.3)
    texts, labels = book.write_reports(900, names, shape, one_class=True)
    assert (labels.sum(1) == 1).all()
    expected = [0.3, 0.35, 0.35] if "normal" in names else [0.5, 0.5]
    assert np.abs(labels.mean(0) - expected).max() < 0.05
    rule = json.loads((REPOSITORY / "jaxdp/data/phrasebooks/rule_en.json").read_text())
    for text, row in zip(texts, labels, strict=True):
        for name, there in zip(names, row, strict=True):
            if name != "normal":
                said = [s.replace("{name}", name).lower() for s in rule["present"] if "{" in s]
                assert any(s.partition("{")[0] in text.lower() for s in said) >= there


def test_a_public_start_learns_by_the_tasks_loss(tmp_path, monkeypatch):
    seen = []

    def loss(logits, labels):
        seen.append(logits.shape)
        return TASK.loss(logits, labels)

    monkeypatch.setitem(TASKS, "multi-class", TASK._replace(loss=loss))
    values = settings(
        model__pooling="label-attention", train__mode="head", data__max_length=16, run__devices=1,
        warm_start__phrasebook="labels", warm_start__steps=3, warm_start__reports=64,
    )  # fmt: skip
    backbone = Backbone("b", write_backbone(tmp_path / "backbone"), "label-attention")
    model, _ = build_model(Config.from_dict(values), backbone, CLASSES, RunSecret.create(0))
    assert model.task == "multi-class" and set(seen) == {(3,)}


# Labels as Python code holds them.


def test_classes_are_sorted_and_every_text_has_its_own():
    table, classes = classes_of(["b", "a", "b"], 3, ["b", "c", "a"])
    assert classes.tolist() == ["a", "b", "c"]
    assert table.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]] and table.dtype == np.int8
    table, classes = classes_of(np.array([10, 2.0]), 2, [10, 2])
    assert classes.tolist() == [2, 10] and table.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("values", "one"),
    [(["a", "b"], True), ([1, 2], True), (np.array([1, 2]), True), ([["a"], []], False)]
    + [(np.eye(2), False), ("ab", False), (None, False)],
)
def test_one_class_is_told_from_rows_of_labels(values, one):
    assert has_one_class(values) == one


SECRET = "ZEBRAPHRASE"


@pytest.mark.parametrize(
    ("values", "names", "words"),
    [
        (["a", "b", "a"], None, "label_names must list all classes: read off Y"),
        (["a", "b"], ["a", "b"], "Y has 2 rows, not 3"),
        (["a", None, "b"], ["a", "b"], r"Y\[1\] has no class"),
        (["a", "b", float("nan")], ["a", "b"], r"Y\[2\] has no class"),
        (["a", "b", SECRET], ["a", "b"], r"Y\[2\] is none of label_names"),
        ([0, SECRET, 1], [0, 1], r"Y\[1\] is none of label_names"),
        (["0", "1", "1"], [0, 1], r"Y\[0\] is none of label_names"),
        (["a", ["b"], "a"], ["a", "b"], r"Y\[1\] is none of label_names"),
        ([0.5, 1.5, 0.5], [0.5, 1.5], "label_names must be classes: all strings"),
    ],
)
def test_what_is_no_class_is_said_by_its_place(values, names, words):
    with pytest.raises(DataError, match=words) as error:
        classes_of(values, 3, names)
    assert "\n" not in str(error.value) and SECRET not in str(error.value)


# A whole run.


def collection(n=200):
    """[text, class], of which the words of a text decide the class."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(n):
        words = rng.choice([w for w in WORDS if w not in CLASSES], rng.integers(1, 6)).tolist()
        chosen = CLASSES[rng.integers(3)]
        words += [chosen] * (chosen != "other")
        rows.append([" ".join(rng.permutation(words)), chosen])
    return rows


@pytest.fixture(scope="module", params=["cls", "label-attention"])
def finished(request, tmp_path_factory):
    """A run's directory, and the folder with its table and backbone."""
    folder = tmp_path_factory.mktemp(request.param)
    write_backbone(folder / "backbone")
    write_table(folder / "t.csv", ["text", "class"], collection())
    config = smoke_config(
        folder,
        data__source="table",
        data__root=str(folder / "t.csv"),
        data__task="multi-class",
        data__labels=CLASSES,
        data__label_column="class",
        model__pooling=request.param,
        train__steps=60,
        train__expected_batch_size=80.0,
        train__learning_rate=0.03,
        train__temperature=1.5,
        head_stage__steps=0,
        centering__l2_clip_norm=None,
        privacy__epsilon=None,
        run__eval_every=30,
        run__checkpoint_every=30,
    )
    with (folder / "console.txt").open("w") as file:
        monitor = Monitor(Console(width=200, file=file))
        train(config, resume=False, interrupt=Interrupt(), monitor=monitor)
    return folder / "runs" / "smoke", folder


def test_a_run_learns_and_says_so_in_the_scores_of_one_class(finished):
    run, folder = finished
    test = json.loads((run / "metrics.json").read_text())["test"]
    kept = TestPredictions.read(run / "private" / "test_predictions.npz")
    np.testing.assert_allclose(kept.probabilities.sum(1), 1, rtol=1e-5)
    truth, decided = kept.labels.argmax(1), kept.probabilities.argmax(1)
    # By hand: no library, no shared code.
    right = sum(int(t == d) for t, d in zip(truth, decided, strict=True))
    assert test["accuracy"] == pytest.approx(right / len(truth)) and test["accuracy"] > 0.6
    recalls, f1 = [], []
    for c in range(3):
        hit = sum(int(t == d == c) for t, d in zip(truth, decided, strict=True))
        there, said = int((truth == c).sum()), int((decided == c).sum())
        recalls.append(hit / there)
        f1.append(2 * hit / (there + said))
    assert test["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert test["macro_f1"] == pytest.approx(np.mean(f1))
    assert test["weighted_f1"] == pytest.approx(np.average(f1, weights=kept.labels.sum(0)))
    shown = (folder / "console.txt").read_text()
    assert f"accuracy {test['accuracy']:.4f}, balanced {test['balanced_accuracy']:.4f}" in shown


def test_the_release_says_its_task_and_answers_the_same_elsewhere(finished):
    run, folder = finished
    adapter = run / "release" / "adapter"
    assert all(f.passed for f in check_release(run / "release", folder / "backbone"))
    stated = json.loads((run / "release" / "privacy.json").read_text())
    assert "one class for each report" in stated["labels"]
    description = json.loads((adapter / "jaxdp.json").read_text())
    assert description["problem_type"] == "single_label_classification"
    model, names, _ = load_finetuned(adapter, str(folder / "backbone"))
    assert model.task == "multi-class" and names == CLASSES
    classifier = ReleasedClassifier(run / "release", base_model=str(folder / "backbone"))
    texts = ["heart effusion small.", "normal lungs", "acute"]
    p = classifier.predict_proba(texts)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    assert classifier.predict(texts).tolist() == [CLASSES[i] for i in p.argmax(1)]


@IGNORE_PEFT
def test_pytorch_gives_the_same_probabilities(finished):
    run, folder = finished
    adapter, base = run / "release" / "adapter", str(folder / "backbone")
    if "label" in folder.name:
        code = adapter / "label_attention_torch.py"
        assert ".softmax(-1)" in code.read_text() and "sigmoid" not in code.read_text()
        assert code.read_bytes() == torch_class("multi-class") != torch_class("multi-label")
        spec = importlib.util.spec_from_file_location("beside", code)
        beside = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(beside)
        theirs = beside.load(adapter, base)
    else:
        problem = json.loads((adapter / "jaxdp.json").read_text())["problem_type"]
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=3, problem_type=problem
        )
        theirs = peft.PeftModel.from_pretrained(model, adapter).eval()
        assert theirs.config.problem_type == problem
    classifier = ReleasedClassifier(run / "release", base_model=base)
    words = "heart effusion small left".split()
    ids = [VOCABULARY.index(word) for word in ("[CLS]", *words, "[SEP]")]
    with torch.inference_mode():
        logits = theirs(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))
        ).logits
    found = logits.softmax(-1).numpy()
    np.testing.assert_allclose(found, classifier.predict_proba([" ".join(words)]), atol=1e-4)


def test_a_merged_checkpoint_and_stablehlo_keep_the_task(finished, tmp_path):
    run, folder = finished
    adapter, base = run / "release" / "adapter", str(folder / "backbone")
    export(adapter, tmp_path / "merged", "merged", base)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    again, names, _ = load_finetuned(tmp_path / "merged")
    assert again.task == "multi-class" and names == CLASSES
    description = json.loads((tmp_path / "merged" / "jaxdp.json").read_text())
    (tmp_path / "merged" / "jaxdp.json").write_text(json.dumps(description | {"problem_type": "x"}))
    with pytest.raises(WeightsError, match="problem_type must be multi_label_classification or"):
        load_finetuned(tmp_path / "merged")
    export(adapter, tmp_path / "out", "stablehlo", base)
    program = jax.export.deserialize((tmp_path / "out" / "model.jax_export").read_bytes())
    answers = program.call(jnp.ones((2, 5), jnp.int32), jnp.array([5, 3], jnp.int32))
    np.testing.assert_allclose(answers.sum(1), 1, rtol=1e-5)


def test_a_file_gets_the_class_and_its_evidence(finished, tmp_path):
    run, folder = finished
    classifier = ReleasedClassifier(run / "release", base_model=str(folder / "backbone"))
    texts = ["heart. effusion small.", "normal lungs.", "acute"]
    source = write_table(tmp_path / "new.csv", ["name", "text"], [["x", t] for t in texts])
    attends = "label" in folder.name
    options = dict(text_column="text", skip_bad_rows=False, id_column="name", evidence=attends)
    label_file(classifier, source, tmp_path / "out.csv", **options)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"probability_{name}" for name in CLASSES]
    assert list(rows[0]) == ["row", "name", "class", *names, *["evidence"] * attends]
    assert [row["class"] for row in rows] == classifier.predict(texts).tolist()
    wanted = classifier.predict_proba(texts)
    np.testing.assert_allclose([[float(row[n]) for n in names] for row in rows], wanted)
    if attends:
        read = classifier.evidence(texts)
        for row, sentences in zip(rows, read, strict=True):
            assert row["evidence"] == sentences[CLASSES.index(row["class"])]
    with pytest.raises(DataError, match="thresholds: there are none where a text has one class"):
        label_file(
            classifier, source, tmp_path / "o.csv", **options, thresholds={"normal": 0.7}
        )  # fmt: skip
    with pytest.raises(DataError, match="--id_column 'class' is the name of another column"):
        label_file(classifier, source, tmp_path / "o.csv", **options | {"id_column": "class"})


def test_a_model_card_says_that_there_is_one_class(finished):
    run, _ = finished
    statement = json.loads((run / "release" / "privacy.json").read_text())
    card = released.model_card("a/b", statement, run / "release" / "adapter")
    assert "Its 3 classes, one for each text: effusion, normal, other." in card


# The estimator.


def test_the_estimator_has_scikit_learns_multiclass(tmp_path):
    rows = collection(60)
    texts, y = [row[0] for row in rows], np.array([CLASSES.index(row[1]) for row in rows]) * 10
    base = str(write_backbone(tmp_path / "backbone"))
    quick = {
        "train.mode": "head", "train.steps": 40, "train.expected_batch_size": 50.0,
        "train.learning_rate": 0.2, "train.widths": 1, "run.devices": 1,
    }  # fmt: skip
    model = PrivateTextClassifier(
        epsilon=None, label_names=[20, 10, 0], recipe=None, max_length=16, backbone=base,
        settings=quick,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="WITHOUT differential privacy"):
        model.fit(texts, y)
    assert model.classes_.tolist() == [0, 10, 20]
    p = model.predict_proba(texts)
    assert p.shape == (60, 3)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    decided = model.predict(texts)
    assert decided.dtype == y.dtype and (decided == model.classes_[p.argmax(1)]).all()
    assert model.score(texts, y) == (decided == y).mean() > 0.4
    model.save(tmp_path / "saved")
    loaded = released.load(tmp_path / "saved", base_model=base)
    assert loaded.predict(texts).tolist() == [str(value) for value in decided]
    assert "one class for each text" in model.privacy_["labels"]
    with pytest.raises(ConfigError, match="label_names must be at least two classes"):
        model.set_params(label_names=[0]).fit(texts, [0] * 60)
    model.set_params(label_names=[0, 10, 20], settings=quick | {"data.task": "multi-label"})
    with pytest.raises(ConfigError, match="'data.task'.*the parameter Y"):
        model.fit(texts, y)


# In private, with a public start, by the command.


@pytest.mark.slow
def test_a_private_run_by_the_command(workspace):
    write_table(workspace / "t.csv", ["text", "class"], collection(400))
    flags = [
        f"--config={REPOSITORY / 'configs' / 'table.py'}",
        f"--config.data.root={workspace / 't.csv'}",
        "--config.data.task=multi-class",
        f"--config.data.labels={CLASSES}",
        "--config.data.label_column=class",
        f"--config.model.backbone={workspace / 'backbone'}",
        "--config.data.max_length=16",
        "--config.lora.layers=last:1",
        "--config.warm_start.steps=40",
        "--config.warm_start.reports=200",
        "--config.privacy.units=300",
        "--config.privacy.epsilon=20",
        "--config.privacy.delta=1e-3",
        f"--config.run.dir={workspace / 'runs'}",
        "--config.run.name=private",
    ]
    done = run_script("train.py", *flags)
    assert done.returncode == 0, done.stderr
    run = workspace / "runs" / "private"
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert test["accuracy"] > 0.45
    assert all(f.passed for f in check_release(run / "release", workspace / "backbone"))
    source = write_table(workspace / "new.csv", ["text"], [["effusion left"], ["normal heart"]])
    done = run_script(
        "predict.py", f"--run={run}", f"--input={source}", f"--output={workspace / 'out.jsonl'}",
        "--evidence",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (workspace / "out.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == 2 * [
        {"row", "class", "evidence", *(f"probability_{name}" for name in CLASSES)}
    ]
