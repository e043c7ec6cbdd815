# SPDX-License-Identifier: Apache-2.0
"""Rows of a table in any common format, streamed: what a cell means is `tables`' business."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .dataset import DataError
from .readers import open_text, read_rows, repair

Row = tuple[str, int, list[Any]]
"""(name of the part that the row is in, or ""; row number in it; values of the wanted columns)."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_ON_DISK = ("dataset_dict.json", "dataset_info.json")
FORMATS = (*_DELIMITERS, *_JSON_LINES, ".parquet")


def stream_rows(source: str, columns: Sequence[str], counts: Counter) -> Iterator[Row]:
    """Streams the wanted columns of a table.

    Args:
        source: a file in one of FORMATS (all but Parquet may be gzip files: `.csv.gz`), a folder
            written by `datasets.save_to_disk`, a folder of files that `datasets` reads, or the
            id of a data set on the Hugging Face hub ("owner/name"), which is streamed, so that
            no copy of it stays in a cache.
        columns: wanted.
        counts: counts values that are not UTF-8.

    Raises:
        DataError: missing or damaged file, unknown format, or a missing column.
    """
    path = Path(source)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if path.is_dir():
        yield from _stored_dataset(path, columns)
    elif not path.exists() and _is_hub_id(source):
        yield from _dataset(source, columns)
    elif suffix in _DELIMITERS:
        for number, values in read_rows(path, columns, counts, delimiter=_DELIMITERS[suffix]):
            yield "", number, values
    elif suffix in _JSON_LINES:
        yield from _json_lines(path, columns, counts)
    elif suffix == ".parquet":
        yield from _parquet(path, columns)
    else:
        raise DataError(
            f"data.root = {source} is not a table: it must end in {', '.join(FORMATS)}, or be a "
            "folder or hub id of a `datasets` data set"
        )


def _is_hub_id(source: str) -> bool:
    owner, slash, name = source.partition("/")
    return bool(owner and slash and name) and "/" not in name and not name.endswith(FORMATS)


def _json_lines(path: Path, columns: Sequence[str], counts: Counter) -> Iterator[Row]:
    with open_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                raise DataError(f"{path}: row {number} is not a JSON object") from None
            if not isinstance(record, dict):
                raise DataError(f"{path}: row {number} is not a JSON object")
            missing = [name for name in columns if name not in record]
            if missing:
                raise DataError(f"{path}: row {number} lacks {', '.join(map(repr, missing))}")
            values = (record[name] for name in columns)
            yield "", number, [repair(v, counts) if isinstance(v, str) else v for v in values]


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _require_columns(str(path), file.schema_arrow.names, columns)
            number = 0
            for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
                lists = batch.to_pydict()
                for values in zip(*(lists[name] for name in columns), strict=True):
                    number += 1
                    yield "", number, list(values)
    except (pyarrow.ArrowException, OSError):
        raise DataError(f"{path} is not a complete Parquet file") from None


def _stored_dataset(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    if not any((path / name).exists() for name in _ON_DISK):
        yield from _dataset(str(path), columns)
        return
    import datasets

    stored = datasets.load_from_disk(str(path))
    parts = stored if isinstance(stored, datasets.DatasetDict) else {"": stored}
    yield from _parts(str(path), parts, columns)


def _dataset(source: str, columns: Sequence[str]) -> Iterator[Row]:
    import datasets

    try:
        parts = datasets.load_dataset(source, streaming=True)
    except Exception as error:  # of many kinds: network, access, no such data set, no data files
        kind = type(error).__name__
        raise DataError(f"data.root = {source} is no data set to `datasets` ({kind})") from None
    yield from _parts(source, parts, columns)


def _parts(source: str, parts, columns: Sequence[str]) -> Iterator[Row]:
    for part, rows in parts.items():
        if rows.column_names is not None:
            _require_columns(source, rows.column_names, columns)
        for number, record in enumerate(rows, start=1):
            yield part, number, [record[name] for name in columns]


def _require_columns(source: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{source} has no column {', '.join(map(repr, missing))}")
