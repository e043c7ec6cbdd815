# SPDX-License-Identifier: Apache-2.0
"""Texts -> token ids, packed without padding, and kept on disk for the next run."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer, Tokenizer

from .dataset import DataError
from .packed import Packed

_FORMAT = 1
"""Of a cache entry; part of its key."""


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


def tokenize(
    texts: Sequence[str], tokenizer: Tokenizer, max_length: int, *, cache: Path | None = None
) -> tuple[Packed, int]:
    """(token ids with special tokens, each row cut to max_length; number of rows that were cut).

    The library's own threads use all cores. Ids are uint16 where the vocabulary allows, else int32.

    Args:
        texts: private.
        tokenizer: left with truncation to max_length switched on.
        max_length: special tokens included.
        cache: folder that keeps results, which are as private as the reports: entries are readable
            by their owner alone. None keeps nothing. A result is found again by a hash of texts,
            tokenizer and max_length, is then memory-mapped, and is made anew if it is damaged.
    """
    tokenizer.no_truncation()
    if cache is None:
        return _encode(texts, tokenizer, max_length)
    entry = Path(cache) / _key(texts, tokenizer, max_length)
    found = _load(entry)
    if found is None:
        _store(entry, *_encode(texts, tokenizer, max_length))
        found = _load(entry)
        if found is None:
            raise DataError(f"{cache} does not keep what is written to it; choose another folder")
    return found


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
    digest = hashlib.sha256(f"{_FORMAT} {max_length} {tokenizer.to_str()}".encode())
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d " % len(content) + content)
    return digest.hexdigest()[:32]


def _checksum(packed: Packed) -> str:
    digest = hashlib.sha256(packed.lengths.tobytes())
    digest.update(np.ascontiguousarray(packed.values).data)
    return digest.hexdigest()


def _store(entry: Path, packed: Packed, cut: int) -> None:
    """Writes an entry whole or not at all, whatever else writes it at the same time."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp: for the owner alone, and so is the entry that it becomes
    folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=entry.parent))
    try:
        np.save(folder / "values.npy", packed.values)
        np.save(folder / "lengths.npy", packed.lengths)
        meta = {"cut": cut, "sha256": _checksum(packed)}
        (folder / "meta.json").write_text(json.dumps(meta))
        if entry.exists() and _load(entry) is None:
            shutil.rmtree(entry, ignore_errors=True)  # damaged
        try:
            os.rename(folder, entry)
        except OSError:  # another process was faster
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _load(entry: Path) -> tuple[Packed, int] | None:
    """A sound entry, memory-mapped; None if there is none."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        values = np.load(entry / "values.npy", mmap_mode="r")
        packed = Packed.from_lengths(values, np.load(entry / "lengths.npy"))
        sound = meta["sha256"] == _checksum(packed)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return (packed, int(meta["cut"])) if sound else None
