# SPDX-License-Identifier: Apache-2.0
"""Labels for new reports, from a release bundle, in constant memory."""

import csv
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from scipy.special import expit
from tokenizers import Tokenizer

from jaxdp.backbone import load_finetuned
from jaxdp.data.arrays import texts_of
from jaxdp.data.batching import Buckets
from jaxdp.data.dataset import DataError
from jaxdp.data.readers import clean_text
from jaxdp.data.table_rows import stream_rows
from jaxdp.data.tokens import load_tokenizer, tokenize
from jaxdp.dp import statement_markdown
from jaxdp.models import lora
from jaxdp.models.checkpoints import read_json

from .evidence import Evidence
from .inference import Predictor
from .metrics import DECISION_THRESHOLD

CHUNK = 2048
"""Reports held in memory at once."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One input row: a text, or what is wrong with it."""

    number: int
    """Of the data row, from 1; empty lines are none."""
    text: str = dataclasses.field(repr=False)
    problem: str | None = None
    id: str = dataclasses.field(default="", repr=False)


def read_rows(path: Path, text_column: str, id_column: str | None = None) -> Iterator[Row]:
    """Rows of a file in one of `table_rows.FORMATS`, one at a time.

    A row without usable text is yielded with its problem; texts are never part of a message.

    Raises:
        DataError: missing or damaged file, unknown type, or no such column.
    """
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist, or is no file")
    columns = (text_column,) if id_column is None else (text_column, id_column)
    rows = stream_rows(str(path), columns, Counter())
    for number, (_, _, values, problem) in enumerate(rows, start=1):
        text, name = ("", "") if problem else (*values, "")[:2]
        if not isinstance(text, str | None):
            text, problem = "", f"has no string in {text_column!r}"
        elif not isinstance(name, str | int):
            name, problem = "", f"has no string or integer in {id_column!r}"
        text = clean_text(text)
        yield Row(number, text, problem or (None if text else "has no text"), str(name))


class ReleasedClassifier:
    """A release bundle, ready to label texts: what `jaxdp.load` returns.

    Attributes:
        labels: names, in the order of the columns of what is predicted.
        privacy: the statement, as in privacy.json.

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
        self.privacy: dict[str, Any] = read_json(Path(release) / "privacy.json")
        model, self.labels, _ = load_finetuned(adapter, base_model)
        self._tokenizer: Tokenizer = load_tokenizer(adapter)
        config = json.loads((adapter / "tokenizer_config.json").read_text("utf-8"))
        self._max_length = int(config["model_max_length"])
        graphdef, *self._states = lora.split(model, "head")
        buckets = Buckets.for_lengths(self._max_length, microbatch_tokens)
        self._logits = Predictor(graphdef, 0, buckets, mesh, activation=lambda logits: logits)
        self._evidence = cache(partial(Evidence, model, self._tokenizer, self._max_length, buckets))

    def predict_proba(self, texts: Any) -> np.ndarray:
        """Probabilities [n, labels], float64: none is 0 or 1, as it would be in fewer bits.

        `texts` is a list, an array or a column, see `arrays.texts_of`; DataError if one is empty.
        """
        tokens, _ = tokenize(texts_of(texts), self._tokenizer, self._max_length)
        probabilities = expit(self._logits(*self._states, tokens).astype(np.float64))
        return np.clip(probabilities, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))

    def predict(self, texts: Any) -> np.ndarray:
        """Decisions [n, labels], 0 or 1."""
        return (self.predict_proba(texts) >= DECISION_THRESHOLD).astype(int)

    def evidence(self, texts: Any) -> list[list[str]]:
        """[n][labels] the sentence that each label read; DataError without label attention."""
        texts = texts_of(texts)
        return self._evidence()(texts)

    def explain_privacy(self) -> str:
        """The statement in words, as in PRIVACY.md."""
        return statement_markdown(self.privacy)


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
    evidence: bool = False,
) -> Outcome:
    """Labels every row of `source`: CSV with row, the id if `id_column` names one, then decision
    and probability of each label, and with `evidence` the sentence that each label found has read.

    `target` appears when all rows are done; memory does not grow with their number.

    Raises:
        DataError: unreadable input; an id column that the output has already; or a bad row, unless
            they are to be skipped.
    """
    scratch = target.with_name(f".{target.name}.tmp")
    labelled, skipped = 0, []
    names = classifier.labels
    header = ["row", *names, *(f"probability_{name}" for name in names)]
    show = classifier.evidence if evidence else None
    header += [f"evidence_{name}" for name in names] if show else []
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
                texts = [row.text for row in good]
                read = show(texts) if show else [()] * len(texts)
                for row, values, said in zip(
                    good, classifier.predict_proba(texts), read, strict=True
                ):
                    decisions = (values >= DECISION_THRESHOLD).astype(int)
                    own = [row.number] if id_column is None else [row.number, row.id]
                    said = [text if yes else "" for text, yes in zip(said, decisions, strict=False)]
                    writer.writerow([*own, *decisions, *values.tolist(), *said])
                labelled += len(good)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return Outcome(labelled, tuple(skipped))
