# SPDX-License-Identifier: Apache-2.0
"""Finished members as one tidy table: a row for each member, label and metric."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from jaxdp.evaluation.metrics import scores
from jaxdp.files import write_whole
from jaxdp.run.directory import RunError

from .members import Member

CALIBRATION = ("log_loss", "expected_calibration_error")
PER_LABEL = ("f1", "auroc", "support", "predicted", "labelled")
ALL_LABELS = "(all)"
"""In the column `label`, of metrics over all labels."""


def results_table(members: Mapping[str, Member]) -> pyarrow.Table:
    """Columns member, seed, label, metric, value, and every setting as "section.field".

    Members without metrics.json are not in it. Rows are in the order of members, labels and
    metrics. An undefined value (AUROC of a label without positives) is null.

    Raises:
        RunError: a finished member cannot be read.
    """
    rows: list[dict[str, Any]] = []
    for name, member in members.items():
        file = member.path / "metrics.json"
        if not file.exists():
            continue
        try:
            test = json.loads(file.read_text(encoding="utf-8"))["test"]
            overall = scores(test) | {metric: test[metric] for metric in CALIBRATION}
            values = [(ALL_LABELS, metric, value) for metric, value in overall.items()]
            values += [
                (label, metric, row[metric])
                for label, row in test["per_label"].items()
                for metric in PER_LABEL
            ]
        except (OSError, ValueError, KeyError, TypeError):
            raise RunError(f"{file} cannot be read") from None
        settings = _settings(member)
        rows += [
            {"member": name, "seed": member.seed, "label": label, "metric": metric}
            | {"value": None if value is None else float(value)}
            | settings
            for label, metric, value in values
        ]
    return pyarrow.Table.from_pylist(rows, schema=_schema(members))


def write_results(folder: Path, table: pyarrow.Table) -> None:
    """results.parquet and results.csv."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    write_whole(folder / "results.parquet", buffer.getvalue())
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    write_whole(folder / "results.csv", buffer.getvalue())


def _settings(member: Member) -> dict[str, Any]:
    return {
        f"{section}.{field}": ",".join(value) if isinstance(value, tuple) else value
        for section, fields in member.config.to_dict().items()
        for field, value in fields.items()
    }


def _schema(members: Mapping[str, Member]) -> pyarrow.Schema:
    """Types by what any member has; text where none has anything."""
    kinds = {float: pyarrow.float64(), int: pyarrow.int64(), bool: pyarrow.bool_()}
    found = {"member": pyarrow.string(), "seed": pyarrow.int64(), "label": pyarrow.string()}
    found |= {"metric": pyarrow.string(), "value": pyarrow.float64()}
    for member in members.values():
        for name, value in _settings(member).items():
            if name not in found or value is not None:
                found[name] = kinds.get(type(value), pyarrow.string())
    return pyarrow.schema(found.items())
