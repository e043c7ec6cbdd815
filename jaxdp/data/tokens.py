# SPDX-License-Identifier: Apache-2.0
"""Texts -> token ids, packed without padding."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer, Tokenizer

from .dataset import DataError
from .packed import Packed


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory: tokenizer.json, or BERT's vocab.txt.

    Raises:
        DataError: neither file is there.
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
    tokenizer.no_padding()
    return tokenizer


def tokenize(texts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> tuple[Packed, int]:
    """(token ids with special tokens, each row cut to max_length; number of rows that were cut)."""
    tokenizer.enable_truncation(max_length)
    rows, cut = [], 0
    for start in range(0, len(texts), 4096):
        for encoding in tokenizer.encode_batch(list(texts[start : start + 4096])):
            rows.append(np.asarray(encoding.ids, np.int32))
            cut += bool(encoding.overflowing)
    values = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    return Packed.from_lengths(values, np.array([len(r) for r in rows])), cut
