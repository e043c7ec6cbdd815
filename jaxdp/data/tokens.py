# SPDX-License-Identifier: Apache-2.0
"""Texts -> token ids, packed without padding."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding, Tokenizer

from jaxdp.models.pretrained import read_config

from .dataset import DataError
from .packed import Packed
from .store import key_of, stored

if TYPE_CHECKING:
    from transformers import TokenizersBackend

_FORMAT = 1
"""Of a cache entry; part of its key."""


def read_tokenizer(directory: Path) -> "TokenizersBackend":
    """The tokenizer of a model directory as transformers reads it: tokenizer.json, vocab.txt or
    spiece.model, with what tokenizer_config.json says of case and accents.

    Raises:
        DataError: there is none, or config.json beside it has fewer rows of embeddings than the
            tokenizer has ids: JAX would quietly take the last row for the others.
    """
    from transformers import AutoTokenizer, BertConfig  # a second, or two where torch is installed

    directory = Path(directory)
    config, rows = None, math.inf
    if (directory / "config.json").exists():
        config = read_config(directory)
        rows = config.vocab_size
    elif (directory / "vocab.txt").exists():
        config = BertConfig()  # older releases do not name the class
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, config=config, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many kinds, some of them Rust's
        reason = str(error).partition("\n")[0]
        raise DataError(f"{directory}: transformers cannot read its tokenizer: {reason}") from None
    kind, names = type(tokenizer).__name__, sorted(tokenizer.vocab_files_names.values())
    if not any((directory / name).exists() for name in names):
        # where there is no file, transformers makes up a vocabulary of nothing but special tokens
        raise DataError(
            f"{directory} holds neither {' nor '.join(names)}, which a {kind} is read from; "
            "tokenizer_class in tokenizer_config.json may name another"
        )
    if not tokenizer.is_fast:
        raise DataError(f"{directory}: a {kind} has no fast form, hence is not supported")
    ids = max(tokenizer.get_vocab().values(), default=-1) + 1
    if ids > rows:
        raise DataError(
            f"{directory}: the tokenizer has {ids} ids, but vocab_size in config.json is {rows}; "
            "they belong to different models"
        )
    return tokenizer


def load_tokenizer(directory: Path) -> Tokenizer:
    """The fast core of `read_tokenizer`, for `tokenize`."""
    tokenizer = read_tokenizer(directory).backend_tokenizer
    tokenizer.no_padding()
    return tokenizer


_OVERLAP = 8
"""A window repeats one in so many of the tokens before it."""


def tokenize(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    windows: int = 1,
    *,
    cache: str | Path | None = None,
) -> tuple[Packed, int]:
    """(token ids with special tokens, each row cut to max_length; number of rows that were cut).

    With several windows a row is so many of them end to end, each of max_length but for its last,
    and each with special tokens of its own.

    The library's own threads use all cores. Ids are uint16 where the vocabulary allows, else int32.

    Args:
        texts: private.
        tokenizer: left with truncation to max_length switched on.
        max_length, windows: tokens of a window, special ones included, and how many at most.
        cache: folder for `store.stored`, where a result is found again by a hash of texts,
            tokenizer and max_length. None keeps nothing.
    """
    tokenizer.no_truncation()
    if cache is None:
        return _encode(texts, tokenizer, max_length, windows)
    contents = (text.encode("utf-8", "surrogatepass") for text in texts)
    marked = (b"%d " % len(content) + content for content in contents)
    key = key_of(f"{_FORMAT} {max_length} {windows} {tokenizer.to_str()}", marked)
    return stored(cache, key, lambda: _encode(texts, tokenizer, max_length, windows))


def most_tokens(tokenizer: Tokenizer, max_length: int, windows: int) -> int:
    """Of a text that so many windows hold whole; special ones are counted once."""
    new = max_length - tokenizer.num_special_tokens_to_add(False) - max_length // _OVERLAP
    return max_length + (windows - 1) * new


def windows_of(encoding: Encoding, windows: int) -> list[Encoding]:
    """The first of the windows that the library has cut a text into."""
    return [encoding, *encoding.overflowing][:windows]


def _encode(
    texts: Sequence[str], tokenizer: Tokenizer, max_length: int, windows: int
) -> tuple[Packed, int]:
    tokenizer.enable_truncation(max_length, stride=max_length // _OVERLAP if windows > 1 else 0)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.int32
    parts, lengths, cut = [np.zeros(0, dtype)], [], 0
    # the library holds about 100 bytes per token while it works: small batches bound that
    for start in range(0, len(texts), 1024):
        rows = []
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + 1024])):
            kept = windows_of(encoding, windows)
            for window in kept:
                rows += window.ids
            lengths.append(sum(map(len, kept)))
            cut += len(encoding.overflowing) >= windows
        parts.append(np.array(rows, dtype))
    return Packed.from_lengths(np.concatenate(parts), np.array(lengths, np.int32)), cut
