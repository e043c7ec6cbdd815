# SPDX-License-Identifier: Apache-2.0
"""Text and delimited files as they come: compressed or not, in UTF-8 or not, complete or not.

An error names the file and the row, never what stands there: a file without its header row would
otherwise put a patient's report into the message.
"""

import contextlib
import csv
import difflib
import gzip
import itertools
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .dataset import DataError

REPAIRED = "values not in UTF-8, read as Latin-1"
"""Key of `counts` for text whose encoding had to be guessed."""

FIRST = "row 1 must name the columns; it"
HEADER = "; is it a header, or a report already?"
_SEPARATED = "; is there something else than , ; | or a tab between the columns?"

# What programs write for "no value"; "Not given." is CT-RATE's.
MISSING = frozenset({"", "nan", "none", "null", "na", "n/a", "not given", "not given."})

csv.field_size_limit(2**27)  # a report may exceed csv's default of 128 KiB


def clean_text(value: str | None) -> str:
    """Text on one line, single-spaced; "" for what programs write when there is none."""
    text = " ".join((value or "").split())
    return "" if text.lower() in MISSING else text


def clean_cell(value: Any) -> str:
    """`clean_text` of a text, an id or a name of any type."""
    if isinstance(value, float | np.floating) and value.is_integer():
        value = int(value)  # an id in a column with gaps comes back as a float
    return clean_text(str(value))  # which knows "None" and "nan" for what they are


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


def undecoded(value: str) -> bool:
    """Whether a value from `open_text` holds bytes that were not UTF-8."""
    return not value.isascii() and any("\udc80" <= c <= "\udcff" for c in value)


@contextlib.contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A text stream of a plain or gzip file, told apart by content, in UTF-8, or in UTF-16 where a
    byte order mark says so, as Excel writes it; DataError if it is missing or damaged."""
    try:
        with path.open("rb") as file:
            opener = gzip.open if file.read(2) == b"\x1f\x8b" else open
        with opener(path, "rb") as file:
            wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
        encoding = "utf-16" if wide else "utf-8-sig"
        with opener(path, "rt", encoding=encoding, errors="surrogateescape", newline="") as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a complete gzip file: {error}") from None
    except UnicodeError:
        raise DataError(f"{path} is not complete UTF-16") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def find_columns(
    place: str, names: Sequence[str], wanted: Sequence[str], hint: str = ""
) -> list[int]:
    """Where each wanted column is among `names`.

    Raises:
        DataError: some are not; if none is, `hint` is at its end. Of `names` it shows the number
            alone: what stands in place of a header may be a report.
    """
    missing = [name for name in wanted if name not in names]
    if not missing:
        return [names.index(name) for name in wanted]
    if any(undecoded(name) or "\0" in name for name in names):
        hint = "; they are not in UTF-8, as which the file should be saved"
    elif 2 * len(missing) <= len(wanted):  # otherwise even that would tell of a report
        lower = [name.lower() for name in names]
        hint = "".join(
            f"; column {lower.index(match) + 1} is nearly {name!r}"
            for name in missing
            for match in difflib.get_close_matches(name.lower(), lower, 1, 0.7)
        )
    elif len(missing) < len(wanted):
        hint = ""
    raise DataError(
        f"{place} has {len(names)} column{'s' * (len(names) != 1)}, none of them "
        f"{' or '.join(map(repr, missing))}{hint}"
    )


def delimited_rows(
    path: Path, columns: Sequence[str]
) -> Iterator[tuple[int, list[str], str | None]]:
    """Streams (row number, values of `columns`, what is wrong with the row or None) of a delimited
    file with a header row.

    Row numbers count records from 1, the header being row 1. Empty lines are skipped. The delimiter
    is that of , ; | and tab with which row 1 has the most of the columns.

    Args:
        path: plain or gzip.
        columns: wanted names, in the order wanted; spaces around names in the file do not matter.

    Raises:
        DataError: the file is missing or damaged, or a column is missing.
    """

    def names(delimiter: str) -> list[str]:
        stream.seek(0)
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        return [name.strip() for name in next(reader, ())]

    def found(delimiter: str) -> int:
        try:
            return len(set(columns).intersection(names(delimiter)))
        except csv.Error:
            return -1

    usual = "\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else ","
    try:
        with open_text(path) as stream:
            delimiter = max(dict.fromkeys(f"{usual},;\t|"), key=found)
            header = names(delimiter)
            if not header:
                raise DataError(f"{path} is empty, or its row 1, which must name the columns, is")
            if header[0].startswith("version https://git-lfs"):
                raise DataError(f"{path} is a Git LFS pointer; fetch the file (git lfs pull)")
            hint = HEADER if len(header) > 1 else _SEPARATED
            wanted = find_columns(f"{path}: {FIRST}", header, columns, hint)
            stream.seek(0)
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            next(reader)
            for number in itertools.count(2):
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield number, [], f"cannot be read: {error}"
                    continue
                if len(row) == len(header):
                    yield number, [row[i] for i in wanted], None
                elif row:
                    yield number, [], f"has {len(row)} fields, the header has {len(header)}"
    except csv.Error as error:
        raise DataError(f"{path}: row 1 cannot be read: {error}") from None


def read_rows(
    path: Path, columns: Sequence[str], counts: Counter
) -> Iterator[tuple[str, list[str]]]:
    """`delimited_rows` of a file that must have no bad row: (file and row, for errors; values).

    Args:
        path, columns: as there.
        counts: REPAIRED is increased for every value that was not UTF-8.

    Raises:
        DataError: as there, or a bad row.
    """
    for number, values, problem in delimited_rows(path, columns):
        where = f"{path}: row {number}"
        if problem:
            raise DataError(f"{where} {problem}")
        yield where, [repair(value, counts) for value in values]
