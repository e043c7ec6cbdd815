# SPDX-License-Identifier: Apache-2.0
"""Rows of a table in any common format, streamed: what a cell means is `tables`' business."""

import json
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .dataset import DataError
from .readers import FIRST, HEADER, delimited_rows, find_columns, open_text, repair, undecoded

Row = tuple[int, list[Any], str | None]
"""(row number; values of the wanted columns; what is wrong with the row, or None). A row with
something wrong has no values."""

_ON_DISK = ("dataset_dict.json", "dataset_info.json")


def stream_rows(
    source: str, columns: Sequence[str], counts: Counter
) -> Iterator[tuple[str, int, list[Any], str | None]]:
    """Streams the wanted columns of a table: (name of the part that the row is in, or ""; the rest
    as in `Row`).

    Args:
        source: a file in one of FORMATS (all but Parquet and Excel may be gzip files: `.csv.gz`), a
            folder written by `datasets.save_to_disk`, a folder of files that `datasets` reads, or
            the id of a data set on the Hugging Face hub ("owner/name"), which is streamed, so that
            no copy of it stays in a cache.
        columns: wanted.
        counts: counts values with characters that there are not.

    Raises:
        DataError: missing or damaged file, unknown format, or a missing column.
    """
    path = Path(source)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    is_id = source.count("/") == 1 and all(source.split("/")) and suffix not in _READERS
    if path.is_dir() or (is_id and not path.exists()):
        rows = _dataset(source, columns)
    elif suffix in _READERS:
        rows = (("", *row) for row in _READERS[suffix](path, columns))
    else:
        raise DataError(
            f"{source} is not a table: it must end in {', '.join(FORMATS)}, or be a folder or hub "
            "id of a `datasets` data set"
        )
    for part, number, values, problem in rows:
        if any(isinstance(v, str) and undecoded(v) for v in values):
            problem = "is not in UTF-8; save the file as that (is it in Windows-1252 or Latin-1?)"
        elif problem is None:
            values = [repair(v, counts) if isinstance(v, str) else v for v in values]
        yield part, number, [] if problem else values, problem


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    with open_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                yield _record(number, record, columns)


def _json(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """An array of objects, an object of columns as pandas' `to_json` writes it, or JSON lines."""
    with open_text(path) as stream:
        try:
            content = json.load(stream)
        except (ValueError, RecursionError):
            content = None
    if isinstance(content, dict) and isinstance(content.get(columns[0]), dict):
        given = {name: column for name, column in content.items() if isinstance(column, dict)}
        content = [
            {name: column.get(row) for name, column in given.items()} for row in given[columns[0]]
        ]
    if not isinstance(content, list):
        yield from _json_lines(path, columns)
        return
    for number, record in enumerate(content, start=1):
        yield _record(number, record, columns)


def _record(number: int, record: Any, columns: Sequence[str]) -> Row:
    if not isinstance(record, dict):
        return number, [], "is not a JSON object"
    missing = [name for name in columns if name not in record]
    if missing:
        return number, [], f"lacks {', '.join(map(repr, missing))}"
    return number, [record[name] for name in columns], None


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            find_columns(str(path), file.schema_arrow.names, columns)
            number = 0
            for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
                lists = batch.to_pydict()
                for values in zip(*(lists[name] for name in columns), strict=True):
                    number += 1
                    yield number, list(values), None
    except (pyarrow.ArrowException, OSError):
        raise DataError(f"{path} is not a complete Parquet file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} holds text that is not UTF-8, behind row {number}") from None


def _excel(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """The first sheet of a workbook; formulas as they were last computed."""
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f"{path} needs a package to be read: pip install 'jaxdp-text[excel]'"
        ) from None

    try:
        with warnings.catch_warnings(action="ignore"):  # of styles; and some quote a cell
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            rows = list(book.worksheets[0].iter_rows(values_only=True))
            book.close()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, LookupError, ValueError, SyntaxError):
        raise DataError(f"{path} is not a complete Excel workbook, or has a password") from None
    names = ["" if cell is None else str(cell).strip() for cell in next(iter(rows), ())]
    wanted = find_columns(f"{path}: {FIRST}", names, columns, HEADER)
    for number, row in enumerate(rows[1:], start=2):
        if any(cell is not None for cell in row):
            yield number, [row[i] if i < len(row) else None for i in wanted], None


def _dataset(source: str, columns: Sequence[str]) -> Iterator[tuple[str, int, list[Any], None]]:
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its log quotes what it cannot parse
    place = ""
    try:
        if any((Path(source) / name).exists() for name in _ON_DISK):
            parts = datasets.load_from_disk(source)
            parts = parts if isinstance(parts, datasets.DatasetDict) else {"": parts}
        else:
            parts = datasets.load_dataset(source, streaming=True)
        for part, rows in parts.items():
            for number, record in enumerate(rows, start=1):
                find_columns(source, list(record), columns)
                yield part, number, [record[name] for name in columns], None
                place = f", behind {part} row {number}"
    except DataError:
        raise
    except Exception as error:  # of many kinds: network, access, no such data set, damaged files
        kind = type(error).__name__
        raise DataError(
            f"data.root = {source}: `datasets` cannot read it ({kind}{place})"
        ) from None


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".csv": delimited_rows,
    ".tsv": delimited_rows,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".xlsx": _excel,
}
FORMATS = tuple(_READERS)
