# SPDX-License-Identifier: Apache-2.0
"""The sentence that a label is said to have read is the one that it did read."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
from helpers_models import load
from helpers_training import write_backbone

from jaxdp.data.batching import Buckets
from jaxdp.data.dataset import DataError
from jaxdp.data.tokens import load_tokenizer
from jaxdp.evaluation.evidence import Evidence, _most_read, sentences
from jaxdp.evaluation.label_file import label_file
from jaxdp.models.readers import join, own_of
from jaxdp.models.tasks import TASKS

LABELS = 3
BUCKETS = Buckets((16, 8), (4, 8))


@pytest.fixture
def backbone(tmp_path):
    return write_backbone(tmp_path / "backbone")


def evidence(backbone, queries, buckets=BUCKETS):
    model = load(backbone, LABELS, "label-attention")
    model.label_attention.queries[...] = jnp.asarray(queries(model), jnp.float32)
    return Evidence(model, load_tokenizer(backbone), 16, buckets)


def asks_for(backbone, *words):
    """Queries that point at the state of a word, as it is when alone."""

    def queries(model):
        tokenizer = load_tokenizer(backbone)
        states = []
        for word in words:
            ids = jnp.asarray(tokenizer.encode(word).ids)
            states.append(np.asarray(model.last_states(ids, len(ids), 0))[1])
        states = np.stack(states)
        return 8 * (states - states.mean(axis=0))

    return queries


def test_sentences_end_where_a_reader_would_end_them():
    text = "Heart normal.  A 1.5 cm nodule!\nNo effusion; lungs clear\n\nStable"
    assert [text[a:b] for a, b in sentences(text)] == [
        "Heart normal.", "A 1.5 cm nodule!", "No effusion;", "lungs clear", "Stable"
    ]  # fmt: skip
    assert sentences("") == [] and sentences(" \n ") == []


@pytest.mark.parametrize("buckets", [BUCKETS, Buckets((40,), (1,), (3,))], ids=str)
def test_each_label_is_shown_its_sentence(backbone, buckets):
    show = evidence(backbone, asks_for(backbone, "effusion", "opacity", "heart"), buckets)
    texts = ["Enlarged heart. Small left effusion. No opacity.", "opacity. heart. effusion."]
    found = show(texts)
    assert found[0] == ["Small left effusion.", "No opacity.", "Enlarged heart."]
    assert found[1] == ["effusion.", "opacity.", "heart."]


def test_what_all_readers_read_counts(backbone):
    bare, model = (load(backbone, LABELS, "label-attention") for _ in range(2))
    queries = asks_for(backbone, "effusion", "opacity", "heart")(model)
    model.label_attention.queries[...] = jnp.asarray(queries, jnp.float32)
    join(model, [own_of(bare), own_of(model)])  # the first reads all tokens alike
    show = Evidence(model, load_tokenizer(backbone), 16, BUCKETS)
    found = show(["Enlarged heart. Small left effusion. No opacity."])
    assert found == [["Small left effusion.", "No opacity.", "Enlarged heart."]]


def test_without_queries_the_longest_sentence_is_read_and_what_is_cut_off_is_not(backbone):
    show = evidence(backbone, lambda model: np.zeros((LABELS, 16)))
    text = "heart. small left effusion. " + "no " * 30
    assert show([text, "heart"]) == [["no " * 29 + "no"] * LABELS, ["heart"] * LABELS]
    late = "lungs clear " * 7 + ". acute acute acute acute."
    assert show([late])[0][0].startswith("lungs clear")


def test_a_token_that_begins_with_the_space_before_it_is_of_its_sentence():
    text = "Heart normal. Effusion."
    begins = (0, 5, 12, 13, 22)  # as RoBERTa and sentencepiece count: " normal", " Effusion"
    offsets = np.array([(0, 0), *zip(begins, (5, 12, 13, 22, 23), strict=True), (0, 0)])
    reads = np.zeros((2, len(offsets)))
    reads[0, 4], reads[1, 2] = 1, 1
    assert _most_read(text, offsets, reads) == ["Effusion.", "Heart normal."]


def test_another_pooling_has_no_evidence(backbone):
    model = load(backbone, LABELS, "mean")
    with pytest.raises(DataError, match="needs label attention; this release pools by mean"):
        Evidence(model, load_tokenizer(backbone), 16, BUCKETS)


def test_only_labels_that_were_found_are_explained(tmp_path):
    class Classifier:
        labels, task = ("a", "b"), TASKS["multi-label"]

        def predict_proba(self, texts):
            return np.array([[0.9, 0.2]] * len(texts))

        def evidence(self, texts):
            return [[f"{t} for a", f"{t} for b"] for t in texts]

    (tmp_path / "in.csv").write_text("text\none\ntwo\n")
    label_file(
        Classifier(),
        tmp_path / "in.csv",
        tmp_path / "out.csv",
        text_column="text",
        skip_bad_rows=False,
        evidence=True,
    )
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [(r["evidence_a"], r["evidence_b"]) for r in rows] == [
        ("one for a", ""),
        ("two for a", ""),
    ]
