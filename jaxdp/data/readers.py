# SPDX-License-Identifier: Apache-2.0
"""Text and delimited files as they come: compressed or not, in UTF-8 or not, complete or not.

An error names the file and the row, never what stands there: a file without its header row would
otherwise put a patient's report into the message.
"""

import csv
import difflib
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from .dataset import DataError

REPAIRED = "values not in UTF-8, read as Latin-1"
"""Key of `counts` for text whose encoding had to be guessed."""

# What programs write for "no value"; "Not given." is CT-RATE's.
MISSING = frozenset({"", "nan", "none", "null", "na", "n/a", "not given", "not given."})

csv.field_size_limit(2**27)  # a report may exceed csv's default of 128 KiB


def clean_text(value: str | None) -> str:
    """Text on one line, single-spaced; "" for what programs write when there is none."""
    text = " ".join((value or "").split())
    return "" if text.lower() in MISSING else text


def decode(content: bytes, counts: Counter) -> str:
    """Bytes of a text file -> text with newlines as \\n; counts the fallback to Latin-1."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
        counts[REPAIRED] += 1
    return text.replace("\r\n", "\n").replace("\r", "\n")


def repair(value: str, counts: Counter) -> str:
    """A value from `open_text`, re-read as Latin-1 (and counted) if it was not UTF-8."""
    # surrogateescape kept the undecodable bytes; only the value that holds them is re-read
    if value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value):
        return value
    counts[REPAIRED] += 1
    try:
        return value.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:  # half of a pair, written out in JSON: no text has such a character
        return value.encode("utf-8", "replace").decode()


def open_text(path: Path):
    """A text stream of a plain or gzip file, told apart by content; DataError if it is missing."""
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    opener = gzip.open if compressed else open
    return opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def _find_columns(path: Path, header: Sequence[str], wanted: Sequence[str]) -> list[int]:
    positions = {name.strip(): i for i, name in reversed(list(enumerate(header)))}
    missing = [name for name in wanted if name not in positions]
    if missing and header[0].startswith("version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer; fetch the file itself (git lfs pull)")
    if missing:
        # a row that lacks most of the names may be no header but a report: nothing of it is shown
        shown = positions if 2 * len(missing) <= len(wanted) else ()
        close = [m for name in missing for m in difflib.get_close_matches(name, shown, 1, 0.7)]
        hint = f"; did you mean {', '.join(map(repr, dict.fromkeys(close)))}?" if close else ""
        raise DataError(
            f"{path}: row 1 must name the columns; {', '.join(map(repr, missing))} is not among "
            f"its {len(header)}{hint}"
        )
    return [positions[name] for name in wanted]


def read_rows(
    path: Path, columns: Sequence[str], counts: Counter, *, delimiter: str = ","
) -> Iterator[tuple[int, list[str]]]:
    """Streams (row number, values of `columns`) of a delimited file with a header row.

    Row numbers count records from 1, the header being row 1. Empty lines are skipped.

    Args:
        path: plain or gzip.
        columns: wanted names, in the order wanted; spaces around names in the file do not matter.
        counts: REPAIRED is increased for every value that was not UTF-8.
        delimiter: one character.

    Raises:
        DataError: the file is missing or damaged, a column is missing, or a row has another number
            of fields than the header.
    """
    number = 1
    try:
        with open_text(path) as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = next(reader, None)
            if not header:
                raise DataError(f"{path} is empty, or its row 1, which must name the columns, is")
            wanted = _find_columns(path, header, columns)
            for number, row in enumerate(reader, start=2):
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{path}: row {number} has {len(row)} fields, the header has {len(header)}"
                    )
                yield number, [repair(row[i], counts) for i in wanted]
    except csv.Error as error:
        raise DataError(f"{path}: cannot read row {number + 1}: {error}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a complete gzip file: {error}") from None
