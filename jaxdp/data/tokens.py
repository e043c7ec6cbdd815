# SPDX-License-Identifier: Apache-2.0
"""Texts -> token ids, packed without padding."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer, Tokenizer

from jaxdp.models.checkpoints import read_json

from .dataset import DataError
from .packed import Packed
from .store import key_of, stored

_FORMAT = 1
"""Of a cache entry; part of its key."""


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory: tokenizer.json, or BERT's vocab.txt.

    Raises:
        DataError: neither file is there, or config.json beside it has fewer rows of embeddings than
            the tokenizer has ids: JAX would quietly take the last row for the others.
    """
    directory = Path(directory)
    if (directory / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    elif (directory / "vocab.txt").exists():
        config_path = directory / "tokenizer_config.json"
        config = json.loads(config_path.read_text()) if config_path.exists() else {}
        tokenizer = BertWordPieceTokenizer(
            str(directory / "vocab.txt"),
            lowercase=config.get("do_lower_case", True),
            strip_accents=config.get("strip_accents"),
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        )._tokenizer
    else:
        raise DataError(f"{directory} holds neither tokenizer.json nor vocab.txt")
    config_path = directory / "config.json"
    rows = read_json(config_path).get("vocab_size") if config_path.exists() else None
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    if isinstance(rows, int) and ids > rows:
        raise DataError(
            f"{directory}: the tokenizer has {ids} ids, but vocab_size in config.json is {rows}; "
            "they belong to different models"
        )
    tokenizer.no_padding()
    return tokenizer


def tokenize(
    texts: Sequence[str], tokenizer: Tokenizer, max_length: int, *, cache: Path | None = None
) -> tuple[Packed, int]:
    """(token ids with special tokens, each row cut to max_length; number of rows that were cut).

    The library's own threads use all cores. Ids are uint16 where the vocabulary allows, else int32.

    Args:
        texts: private.
        tokenizer: left with truncation to max_length switched on.
        max_length: special tokens included.
        cache: folder for `store.stored`, where a result is found again by a hash of texts,
            tokenizer and max_length. None keeps nothing.
    """
    tokenizer.no_truncation()
    if cache is None:
        return _encode(texts, tokenizer, max_length)
    key = _key(texts, tokenizer, max_length)
    return stored(cache, key, lambda: _encode(texts, tokenizer, max_length))


def _encode(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> tuple[Packed, int]:
    tokenizer.enable_truncation(max_length)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.int32
    parts, lengths, cut = [np.zeros(0, dtype)], [], 0
    # the library holds about 100 bytes per token while it works: small batches bound that
    for start in range(0, len(texts), 1024):
        rows = []
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + 1024])):
            rows += encoding.ids
            lengths.append(len(encoding))
            cut += bool(encoding.overflowing)
        parts.append(np.array(rows, dtype))
    return Packed.from_lengths(np.concatenate(parts), np.array(lengths, np.int32)), cut


def _key(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> str:
    """Name of a cache entry."""
    contents = (text.encode("utf-8", "surrogatepass") for text in texts)
    marked = (b"%d " % len(content) + content for content in contents)
    return key_of(f"{_FORMAT} {max_length} {tokenizer.to_str()}", marked)
