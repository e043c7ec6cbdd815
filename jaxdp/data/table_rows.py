# SPDX-License-Identifier: Apache-2.0
"""Rows of a table in any common format, streamed: what a cell means is `tables`' business."""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
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
    if path.is_dir() or (not path.exists() and _is_hub_id(source)):
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
            except (ValueError, RecursionError):
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
    except UnicodeDecodeError:
        raise DataError(f"{path} holds text that is not UTF-8, behind row {number}") from None


def _dataset(source: str, columns: Sequence[str]) -> Iterator[Row]:
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
                _require_columns(source, record, columns)
                yield part, number, [record[name] for name in columns]
                place = f", behind {part} row {number}"
    except DataError:
        raise
    except Exception as error:  # of many kinds: network, access, no such data set, damaged files
        kind = type(error).__name__
        raise DataError(
            f"data.root = {source}: `datasets` cannot read it ({kind}{place})"
        ) from None


def _require_columns(source: str, found: Collection[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataError(f"{source} has no column {', '.join(map(repr, missing))}")
