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
            {"member": name, "seed": member.seed, "label": label, "metric": metric, "value": value}
            | settings
            for label, metric, value in values
        ]
    return pyarrow.Table.from_pylist(rows, schema=_schema(members))


def write_results(folder: Path, table: pyarrow.Table) -> None:
    """results.parquet and results.csv."""
    writers = {"parquet": pyarrow.parquet.write_table, "csv": pyarrow.csv.write_csv}
    for suffix, write in writers.items():
        buffer = io.BytesIO()
        write(table, buffer)
        write_whole(folder / f"results.{suffix}", buffer.getvalue())


def _settings(member: Member) -> dict[str, Any]:
    """Of a column each: a list as one text."""
    return {f: ",".join(v) if isinstance(v, tuple) else v for f, v in member.settings.items()}


def _schema(members: Mapping[str, Member]) -> pyarrow.Schema:
    """Types by what any member has; text where none has anything."""
    fixed = {"member": pyarrow.string(), "seed": pyarrow.int64(), "label": pyarrow.string()}
    fixed |= {"metric": pyarrow.string(), "value": pyarrow.float64()}
    settings = pyarrow.Table.from_pylist([_settings(member) for member in members.values()]).schema
    found = [f.with_type(pyarrow.string()) if f.type == pyarrow.null() else f for f in settings]
    return pyarrow.schema([*fixed.items(), *found])
