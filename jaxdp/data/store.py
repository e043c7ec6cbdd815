# SPDX-License-Identifier: Apache-2.0
"""`Packed` rows kept on disk for the next run: token ids, and what frozen layers made of them."""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from .dataset import DataError
from .packed import Packed


def stored(folder: Path, key: str, make: Callable[[], tuple[Packed, int]]) -> tuple[Packed, int]:
    """What `make` gives, memory-mapped from `folder`, where it is made at first use.

    An entry is written whole or not at all, whatever else writes it at the same time; a damaged one
    is made anew. Entries are as private as the reports, and readable by their owner alone.

    Args:
        folder: made if missing.
        key: a file name that stands for everything the result depends on.
        make: (rows, a count to keep with them).

    Raises:
        DataError: the folder does not keep what is written to it.
    """
    entry = Path(folder) / key
    found = _load(entry)
    if found is None:
        _save(entry, *make())
        found = _load(entry)
        if found is None:
            raise DataError(f"{folder} does not keep what is written to it; choose another folder")
    return found


def key_of(description: str, parts: Iterable[bytes | np.ndarray]) -> str:
    """A name for what depends on the description and on the parts, bytes or arrays, in order."""
    return _sha256(itertools.chain([description.encode()], parts))[:32]


def _sha256(parts: Iterable[bytes | np.ndarray]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):  # bfloat16 has no buffer of its own
            part = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        digest.update(part)
    return digest.hexdigest()


def _save(entry: Path, packed: Packed, count: int) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp: for the owner alone, and so is the entry that it becomes
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=entry.parent))
    try:
        np.save(scratch / "values.npy", packed.values)
        np.save(scratch / "lengths.npy", packed.lengths)
        meta = {"count": count, "sha256": _sha256((packed.lengths, packed.values))}
        (scratch / "meta.json").write_text(json.dumps(meta))
        if entry.exists() and _load(entry) is None:
            shutil.rmtree(entry, ignore_errors=True)  # damaged
        try:
            os.rename(scratch, entry)
        except OSError:  # another process was faster
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load(entry: Path) -> tuple[Packed, int] | None:
    """A sound entry; None if there is none."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        values = np.load(entry / "values.npy", mmap_mode="r")
        packed = Packed.from_lengths(values, np.load(entry / "lengths.npy"))
        sound = meta["sha256"] == _sha256((packed.lengths, packed.values))
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return (packed, int(meta["count"])) if sound else None
