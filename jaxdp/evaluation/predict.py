# SPDX-License-Identifier: Apache-2.0
"""Labels for new reports, from a release bundle, in constant memory."""

import csv
import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from scipy.special import expit
from tokenizers import Tokenizer

from jaxdp.backbone import load_finetuned
from jaxdp.data.batching import Buckets
from jaxdp.data.dataset import DataError
from jaxdp.data.tokens import load_tokenizer, tokenize
from jaxdp.models import lora

from .inference import Predictor
from .metrics import DECISION_THRESHOLD

CHUNK = 2048
"""Reports held in memory at once."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One input row: a text, or what is wrong with it."""

    number: int
    """Of the data row, from 1."""
    text: str = dataclasses.field(repr=False)
    problem: str | None = None
    id: str = dataclasses.field(default="", repr=False)


def read_rows(path: Path, text_column: str, id_column: str | None = None) -> Iterator[Row]:
    """Rows of a CSV (.csv, .tsv) or JSON-lines (.jsonl) file, one at a time.

    A row without usable text is yielded with its problem; texts are never part of a message.

    Raises:
        DataError: missing file, unknown type, no such column, or bytes that are not UTF-8.
    """
    path = Path(path)
    columns = [text_column] if id_column is None else [text_column, id_column]
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise DataError(f"{path}: expected a .csv, .tsv or .jsonl file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, (values, problem) in enumerate(readers[path.suffix](file, columns), 1):
                text, name = (*values, "", "")[:2]
                if problem is None and not text.strip():
                    problem = "has no text"
                yield Row(number, text, problem, name)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _read_csv(file, columns: list[str]) -> Iterator[tuple[list[str], str | None]]:
    rows = csv.reader(file, delimiter="\t" if file.name.endswith(".tsv") else ",", strict=True)
    header = next(rows, [])
    for name in columns:
        if name not in header:
            # their names are not shown: without a header row, they are a report
            raise DataError(f"row 1 has no column {name!r} among its {len(header)}")
    wanted = [header.index(name) for name in columns]
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield [], f"is not CSV: {error}"
            continue
        if len(row) != len(header):
            yield [], f"has {len(row)} fields, the header {len(header)}"
        else:
            yield [row[i] for i in wanted], None


def _read_jsonl(file, columns: list[str]) -> Iterator[tuple[list[str], str | None]]:
    for line in file:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            yield [], "is not JSON"
            continue
        values = [value.get(name) if isinstance(value, dict) else None for name in columns]
        if not isinstance(values[0], str):
            yield [], f"has no string field {columns[0]!r}"
        elif not all(isinstance(v, str | int) for v in values[1:]):
            yield [], f"has no string or integer field {columns[1]!r}"
        else:
            yield [str(v) for v in values], None


class ReleasedClassifier:
    """A release bundle, ready to label texts.

    Args:
        release: a run's release/ directory.
        base_model: directory of the frozen weights, if they are not where the adapter says.
        microbatch_tokens: positions computed at once, on each device.
        mesh: devices to share the reports; None is the default device alone.

    Raises:
        WeightsError, ConfigError, DataError: the bundle or its base model cannot be used.
    """

    def __init__(
        self,
        release: Path,
        *,
        base_model: str | None = None,
        microbatch_tokens: int = 2048,
        mesh: Mesh | None = None,
    ):
        adapter = Path(release) / "adapter"
        if not adapter.is_dir():
            raise DataError(f"{adapter} does not exist; expected the release/ of a finished run")
        model, self.label_names, _ = load_finetuned(adapter, base_model)
        self._tokenizer: Tokenizer = load_tokenizer(adapter)
        config = json.loads((adapter / "tokenizer_config.json").read_text("utf-8"))
        self._max_length = int(config["model_max_length"])
        graphdef, *self._states = lora.split(model, "head")
        buckets = Buckets.for_lengths(self._max_length, microbatch_tokens)
        self._logits = Predictor(graphdef, 0, buckets, mesh, activation=lambda logits: logits)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Probabilities [n, num_labels] of non-empty texts, float64: none is 0 or 1, as it would be
        in fewer bits."""
        tokens, _ = tokenize(texts, self._tokenizer, self._max_length)
        probabilities = expit(self._logits(*self._states, tokens).astype(np.float64))
        return np.clip(probabilities, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How many rows were labelled, and which were not, with the reason."""

    labelled: int
    skipped: tuple[Row, ...]


def label_file(
    classifier: ReleasedClassifier,
    source: Path,
    target: Path,
    *,
    text_column: str,
    skip_bad_rows: bool,
    id_column: str | None = None,
) -> Outcome:
    """Labels every row of `source`: CSV with row, the id if `id_column` names one, then decision
    and probability of each label.

    `target` appears when all rows are done; memory does not grow with their number.

    Raises:
        DataError: unreadable input; an id column that the output has already; or a bad row, unless
            they are to be skipped.
    """
    scratch = target.with_name(f".{target.name}.tmp")
    labelled, skipped = 0, []
    names = classifier.label_names
    header = ["row", *names, *(f"probability_{name}" for name in names)]
    if id_column is not None:
        if id_column in header:
            raise DataError(
                f"--id_column {id_column!r} is the name of another column of the output"
            )
        header.insert(1, id_column)
    try:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            rows = read_rows(source, text_column, id_column)
            while chunk := list(itertools.islice(rows, CHUNK)):
                bad = [row for row in chunk if row.problem]
                if bad and not skip_bad_rows:
                    raise DataError(f"{source}: row {bad[0].number} {bad[0].problem}")
                skipped += bad
                good = [row for row in chunk if not row.problem]
                if not good:
                    continue
                for row, values in zip(good, classifier([r.text for r in good]), strict=True):
                    decisions = (values >= DECISION_THRESHOLD).astype(int)
                    own = [row.number] if id_column is None else [row.number, row.id]
                    writer.writerow([*own, *decisions, *values.tolist()])
                labelled += len(good)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return Outcome(labelled, tuple(skipped))
