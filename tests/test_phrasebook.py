# SPDX-License-Identifier: Apache-2.0
"""Made-up reports say what their labels say, and a phrasebook with a mistake is named."""

import json
import re
from importlib import resources

import numpy as np
import pytest

from jaxdp.data import ctrate, mimic, openi, padchest
from jaxdp.data.dataset import DataError
from jaxdp.data.phrasebook import LANGUAGES, SHIPPED, Phrasebook, Shape

FINDINGS = ("effusion", "nodule", "scar")
NAMES = ("normal", *FINDINGS)
SHAPE = Shape(normal=0.35, findings=1.5, denied=0.65, repeated=0.6, other=0.35)
BOOK = {
    "origin": "a test",
    "slots": {"side": ["left", "right"]},
    "normal": "normal",
    "labels": {
        "effusion": {"present": ["has-effusion {side}."], "absent": ["no-effusion."]},
        "nodule": {"present": ["has-nodule."], "absent": ["no-nodule."]},
        "scar": {"present": ["has-scar."], "absent": []},
    },
    "other": ["other {side}."],
    "close_normal": ["all-normal."],
    "close_abnormal": ["abnormal."],
}


def write(tmp_path, **changes):
    path = tmp_path / "book.json"
    path.write_text(json.dumps(BOOK | changes))
    return str(path)


@pytest.fixture
def book(tmp_path):
    return Phrasebook.read(write(tmp_path))


def test_a_report_says_exactly_what_its_labels_say(book):
    texts, labels = book.write_reports(500, NAMES, SHAPE)
    assert labels.dtype == np.int8 and labels.shape == (500, 4)
    for text, row in zip(texts, labels, strict=True):
        has = dict(zip(NAMES, row, strict=True))
        text = text.lower()
        for name in FINDINGS:
            assert (f"has-{name}" in text) == has[name]
            assert not (has[name] and f"no-{name}" in text)
        assert ("all-normal." in text) == has["normal"] == (not text.count("abnormal."))
        assert not (has["normal"] and any(has[name] for name in FINDINGS))
        assert has["normal"] or any(has[name] for name in FINDINGS) or "other" in text
        assert "{" not in text
    everything = " ".join(texts).lower()
    assert {"left", "right"} <= set(re.findall(r"other (\w+)", everything))


@pytest.mark.parametrize("shape", [SHAPE, Shape(0.1, 2.5, 0.2, 0.05, 0.7)])
def test_the_shares_are_the_stated_ones(book, shape):
    count = 4000
    texts, labels = book.write_reports(count, NAMES, shape)

    def share(value, out_of, chance):  # within 4.5 standard deviations: wrong once in 150,000
        assert abs(value / out_of - chance) < 4.5 * (chance * (1 - chance) / out_of) ** 0.5

    normal = labels[:, 0].sum()
    share(normal, count, shape.normal)
    for column in labels.T[1:]:
        share(column.sum(), count - normal, shape.findings / 3)
    denied = sum("no-nodule" in text.lower() for text in texts)
    share(denied, (labels[:, 2] == 0).sum(), shape.denied)
    twice = sum(text.lower().count("has-scar") == 2 for text in texts)
    share(twice, labels[:, 3].sum(), shape.repeated)
    with_findings = labels[:, 1:].any(axis=1)
    others = sum("other" in t.lower() for t, f in zip(texts, with_findings, strict=True) if f)
    share(others, with_findings.sum(), shape.other)


def test_reports_are_a_pure_function_of_their_seed(book):
    texts, labels = book.write_reports(50, NAMES, SHAPE)
    again, labels_again = book.write_reports(50, NAMES, SHAPE)
    assert texts == again and (labels == labels_again).all()
    assert texts != book.write_reports(50, NAMES, SHAPE, seed=1)[0]


def test_labels_come_in_the_order_that_is_asked_for(book):
    texts, labels = book.write_reports(50, ("scar", "nodule"), SHAPE)
    assert all(
        ("Has-scar" in t or "has-scar" in t) == row[0] for t, row in zip(texts, labels, strict=True)
    )
    assert not any("effusion" in text for text in texts)
    with pytest.raises(DataError, match="no sentences for 'fracture', 'mass'"):
        book.write_reports(1, ("fracture", "scar", "mass"), SHAPE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": 1}, "must hold exactly close_abnormal, close_normal, labels, normal, origin"),
        ({"other": []}, "other must be a list of sentences"),
        ({"slots": {"side": []}}, "slots.side must be a list"),
        ({"close_normal": ["{word} is fine."]}, "close_normal uses word, no word of slots"),
        ({"labels": {"scar": {"present": ["a"]}}}, "labels.scar must hold present and absent"),
        ({"labels": {"scar": {"present": [], "absent": []}}}, "labels.scar.present must be"),
        ({"labels": {"scar": ["a"]}}, "labels.scar must hold present and absent"),
        ({"labels": ["scar"]}, "labels must be an object"),
        ({"slots": []}, "slots must be an object"),
        ({"other": ["a", 1]}, "other must be a list of sentences"),
        ({"close_normal": [""]}, "close_normal must be a list of sentences"),
        ({"slots": {"side": ["left {part}"], "part": [""]}}, "slots.side uses part, no word of"),
        ({"origin": None}, "origin must be a text"),
        ({"normal": 0}, "normal must be a text"),
    ],
)
def test_a_mistake_in_a_book_is_named(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        Phrasebook.read(write(tmp_path, **changes))


def test_what_is_no_book_is_refused(tmp_path):
    with pytest.raises(DataError, match="no phrasebook here .*chest_en.* and no file"):
        Phrasebook.read("nothing")
    path = tmp_path / "book.json"
    path.write_text("{\n,}")
    with pytest.raises(DataError, match="line 2: not JSON"):
        Phrasebook.read(str(path))
    path.write_text("{}ä", "latin-1")
    with pytest.raises(DataError, match=r"book.json is not in UTF-8"):
        Phrasebook.read(str(path))


LABELS = {
    "chest_en": tuple(openi.LABELS),
    "chest_es": tuple(padchest.LABELS),
    "mimic_en": mimic.LABELS,
    "ct_en": ctrate.LABELS,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_books_have_enough_to_say_and_no_sentence_for_two_labels(name):
    book = Phrasebook.read(name)
    assert set(LABELS[name]) - {book.normal} <= book.labels.keys()
    said = [s for phrases in book.labels.values() for s in phrases["present"] + phrases["absent"]]
    said += book.other
    assert len(said) == len(set(said))
    assert all(len(phrases["present"]) >= 7 for phrases in book.labels.values())
    assert "without reading a report" in book.origin


def test_a_book_of_label_names_says_and_denies_every_label_by_its_names():
    names = ("No Finding", "pleural_effusion", "Nodule")
    book = Phrasebook.of_labels(names, "en", ["Nodule: nodule, mass"])
    assert book.normal == "No Finding" and set(book.labels) == set(names[1:])
    assert list(book.names.values()) == ["no finding", "pleural effusion", "nodule"]
    assert "No evidence of pleural effusion." in book.labels["pleural_effusion"]["absent"]
    for key in ("present", "absent"):
        said = book.labels["Nodule"][key]
        assert all(("nodule" in s) != ("mass" in s) for s in said)
        assert sum("nodule" in s for s in said) == sum("mass" in s for s in said) > 0
    texts, labels = book.write_reports(200, names, SHAPE)
    assert labels.any(axis=0).all() and not any("{" in text for text in texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_says_what_it_is_made_from_and_nothing_of_a_label(language):
    book = Phrasebook.of_labels(("unseen",), language)
    assert "label" in book.origin
    for sentence in book.other + book.close_normal + book.close_abnormal:
        assert "unseen" not in sentence and "{name}" not in sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("xx",), "warm_start.language must be one of en, es, not 'xx'"),
        (("en", ["mass: lump"]), "warm_start.synonyms: 'mass: lump' is not a label"),
        (("en", ["Nodule"]), "warm_start.synonyms: 'Nodule' is not a label, a colon"),
        (("en", ["Nodule: ,"]), "warm_start.synonyms: 'Nodule: ,' is not a label, a colon"),
    ],
)
def test_a_mistake_in_synonyms_or_language_is_named(arguments, message):
    with pytest.raises(DataError, match=message):
        Phrasebook.of_labels(("Nodule",), *arguments)


def test_the_lexicon_adds_what_shipped_files_say_of_a_name():
    labels = ("No Finding", "Hernia, Hiatal", "Effusion", "unheard_of")
    plain, known = (Phrasebook.of_labels(labels, "en", (), lexicon) for lexicon in (False, True))
    assert known.names["Hernia, Hiatal"] == "hiatal hernia"
    assert "There is hiatal hernia." in plain.labels["Hernia, Hiatal"]["present"]
    assert plain.labels["unheard_of"] == known.labels["unheard_of"]
    books = {name: Phrasebook.read(name).labels for name in SHIPPED}
    for key in ("present", "absent"):
        more = known.labels["Effusion"][key][len(plain.labels["Effusion"][key]) :]
        # Of the books that have it, whatever they call it; slots keep the choices of their book.
        said = {re.sub(r"\w+_en_(\w+)\}", r"\1}", sentence) for sentence in more}
        assert said == {
            *books["chest_en"]["pleural_effusion"][key],
            *books["mimic_en"]["Pleural Effusion"][key],
            *books["ct_en"]["Pleural effusion"][key],
        }
    texts, _ = known.write_reports(300, labels, SHAPE)
    assert not any(mark in text for text in texts for mark in "{}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_name_of_the_lexicon_is_of_one_finding_with_sentences(language):
    path = resources.files("jaxdp.data") / "phrasebooks" / f"findings_{language}.json"
    lexicon = json.loads(path.read_text("utf-8"))
    names = [name for finding in lexicon["findings"].values() for name in finding["names"]]
    assert len(names) == len(set(names)) and names == [name.lower() for name in names]
    own = [
        s
        for f in lexicon["findings"].values()
        for key in ("present", "absent")
        for s in f.get(key, ())
    ]
    assert len(own) == len(set(own)) > 700
    assert {w for s in own for w in re.findall(r"\{(\w+)\}", s)} == lexicon["slots"].keys()
    assert "without reading a report" in lexicon["origin"]
    book = Phrasebook.of_labels(names, language, (), True)
    plain = Phrasebook.of_labels(names, language, (), False)
    for name in book.labels:  # the language's normal is no finding
        more = len(book.labels[name]["present"]) - len(plain.labels[name]["present"])
        assert more >= 10, name
