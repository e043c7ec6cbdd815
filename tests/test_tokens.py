# SPDX-License-Identifier: Apache-2.0
import json
import stat
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer

from jaxdp.data import store, tokens
from jaxdp.data.dataset import DataError
from jaxdp.data.tokens import load_tokenizer, tokenize
from jaxdp.run.checkpoint import Position
from jaxdp.run.train import Interrupted

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the heart is not enlarged ##ment effusion , . _".split()
TEXTS = ["The heart is enlarged.", "", "Effusion, effusion, effusion!", "the " * 40, "___"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model directory with a vocabulary of 15 words."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


@pytest.fixture
def tokenizer(directory):
    return load_tokenizer(directory)


def rows(packed):
    return [
        packed.values[start : start + length].tolist()
        for start, length in zip(packed.offsets, packed.lengths, strict=True)
    ]


def test_rows_are_cut_and_counted(directory, tokenizer):
    packed, cut = tokenize(TEXTS, tokenizer, 8)
    reference = BertTokenizer(str(directory / "vocab.txt"))
    assert rows(packed) == [
        reference(text, truncation=True, max_length=8)["input_ids"] for text in TEXTS
    ]
    assert cut == 1 and packed.lengths.max() == 8 and len(packed) == len(TEXTS)
    assert packed.values.dtype == np.uint16 and packed.lengths.dtype == np.int32


def test_padding_of_a_stored_tokenizer_is_off(directory, tmp_path):
    stored = BertTokenizer(str(directory / "vocab.txt"))
    stored.backend_tokenizer.enable_padding(length=30)
    stored.save_pretrained(tmp_path)
    assert rows(tokenize(["the heart"], load_tokenizer(tmp_path), 8)[0]) == [[2, 5, 6, 3]]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "transformers cannot read its tokenizer: "),
        ({"tokenizer.json": "{"}, "transformers cannot read its tokenizer: "),
        ({"config.json": "bert"}, "holds neither tokenizer.json nor vocab.txt, which a BertTok"),
        (
            {"config.json": "albert", "vocab.txt": "\n".join(WORDS)},
            "neither spiece.model nor tokenizer.json, which a AlbertTokenizer is read from",
        ),
        (
            {
                "vocab.txt": "\n".join(WORDS),
                "tokenizer_config.json": '{"tokenizer_class": "BertJapaneseTokenizer", '
                '"word_tokenizer_type": "basic"}',
            },
            "a BertJapaneseTokenizer has no fast form",
        ),
    ],
)
def test_directories_without_a_tokenizer_that_we_can_use(tmp_path, files, message):
    for name, content in files.items():
        if name == "config.json":
            content = json.dumps({"model_type": content})
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as info:
        load_tokenizer(tmp_path)
    assert "\n" not in str(info.value)


def test_no_texts(tokenizer):
    packed, cut = tokenize([], tokenizer, 8)
    assert len(packed) == cut == 0


def test_large_vocabulary_takes_int32(tmp_path):
    words = [*WORDS, *(f"w{i}" for i in range(2**16))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    packed, _ = tokenize([words[-1]], load_tokenizer(tmp_path), 8)
    assert packed.values.dtype == np.int32 and packed.values[1] == len(words) - 1


@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=5))
def test_cache_changes_nothing(directory, tmp_path_factory, texts):
    cache, tokenizer = tmp_path_factory.mktemp("cache"), load_tokenizer(directory)
    plain, plain_cut = tokenize(texts, tokenizer, 6)
    for _ in range(2):
        cached, cut = tokenize(texts, tokenizer, 6, cache=cache)
        assert cut == plain_cut
        for field in ("values", "offsets", "lengths"):
            np.testing.assert_array_equal(getattr(cached, field), getattr(plain, field))
            assert getattr(cached, field).dtype == getattr(plain, field).dtype


def fail(*args):
    raise AssertionError("tokenized again")


def test_second_time_is_read_and_memory_mapped(tokenizer, tmp_path, monkeypatch):
    first, _ = tokenize(TEXTS, tokenizer, 8, cache=tmp_path / "new")
    monkeypatch.setattr(tokens, "_encode", fail)
    again, cut = tokenize(TEXTS, tokenizer, 8, cache=tmp_path / "new")
    assert rows(again) == rows(first) and cut == 1
    assert isinstance(again.values, np.memmap)


@pytest.mark.parametrize(
    ("texts", "max_length"),
    [(TEXTS, 9), (TEXTS[:-1], 8), ([*TEXTS[:-2], TEXTS[-2] + TEXTS[-1], ""], 8), (TEXTS[::-1], 8)],
)
def test_other_texts_and_lengths_are_other_entries(
    tokenizer, tmp_path, monkeypatch, texts, max_length
):
    tokenize(TEXTS, tokenizer, 8, cache=tmp_path)
    monkeypatch.setattr(tokens, "_encode", fail)
    with pytest.raises(AssertionError, match="tokenized again"):
        tokenize(texts, tokenizer, max_length, cache=tmp_path)


def test_another_tokenizer_is_another_entry(tokenizer, tmp_path, monkeypatch):
    tokenize(TEXTS, tokenizer, 8, cache=tmp_path / "cache")
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS, "more"]))
    monkeypatch.setattr(tokens, "_encode", fail)
    with pytest.raises(AssertionError, match="tokenized again"):
        tokenize(TEXTS, load_tokenizer(tmp_path), 8, cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["values.npy", "lengths.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_entry_is_made_anew(tokenizer, tmp_path, name, damage):
    first, _ = tokenize(TEXTS, tokenizer, 8, cache=tmp_path)
    wanted = rows(first)
    (entry,) = tmp_path.iterdir()
    content = bytearray((entry / name).read_bytes())
    content[-3] ^= 1
    (entry / name).unlink()
    if damage != "gone":
        (entry / name).write_bytes(content if damage == "flip" else content[: len(content) // 2])
    assert rows(tokenize(TEXTS, tokenizer, 8, cache=tmp_path)[0]) == wanted
    assert list(tmp_path.iterdir()) == [entry]
    assert store._load(entry) is not None


def test_entries_are_for_their_owner_alone(tokenizer, tmp_path):
    tokenize(TEXTS, tokenizer, 8, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700


def test_writers_at_the_same_time(directory, tmp_path):
    def run(_):
        return rows(tokenize(TEXTS, load_tokenizer(directory), 8, cache=tmp_path)[0])

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(8)))
    assert all(result == results[0] for result in results)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_request_to_stop_is_not_taken_for_a_damaged_file(directory, monkeypatch):
    def stopped(*_, **__):
        raise Interrupted(Position(0, 0), None)

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", stopped)
    with pytest.raises(Interrupted):
        load_tokenizer(directory)
