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


def test_rows_are_what_the_reference_tokenizer_gives(directory, tokenizer):
    packed, cut = tokenize(TEXTS, tokenizer, 8)
    reference = BertTokenizer(str(directory / "vocab.txt"))
    assert rows(packed) == [
        reference(text, truncation=True, max_length=8)["input_ids"] for text in TEXTS
    ]
    assert cut == 1 and packed.lengths.max() == 8 and len(packed) == len(TEXTS)
    assert packed.values.dtype == np.uint16 and packed.lengths.dtype == np.int32


def test_tokenizer_json_comes_first_and_gives_the_same(tmp_path, tokenizer):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("unused")
    again = load_tokenizer(tmp_path)
    assert rows(tokenize(TEXTS, again, 8)[0]) == rows(tokenize(TEXTS, tokenizer, 8)[0])


def test_tokenizer_config_is_respected(directory, tmp_path):
    (tmp_path / "vocab.txt").write_text((directory / "vocab.txt").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    cased = rows(tokenize(["Heart heart"], load_tokenizer(tmp_path), 8)[0])
    assert cased == [[2, 1, 6, 3]]  # "Heart" is unknown to a cased tokenizer


def test_no_tokenizer(tmp_path):
    with pytest.raises(DataError, match="holds neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path)


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
