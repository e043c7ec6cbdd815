# SPDX-License-Identifier: Apache-2.0
"""Labels new reports with a finished run, or with its release/ directory alone.

    jaxdp predict --run runs/openi_eps8 --input new.csv --output labels.csv
    jaxdp predict --release release --base_model minilm/ --input new.jsonl --output out.csv

Output: one row per report, with its row number in the input (from 1, the header and empty lines
not counted), its id where --id_column names one, the decision (0 or 1) and the probability of each
label, and with --evidence the sentence that each label found has read. The predictions are about
the reports given: they are as private as those are.
"""

import sys
from pathlib import Path

from jaxdp.data.table_rows import FORMATS
from jaxdp.evaluation.label_file import WRITERS, label_file
from jaxdp.models.checkpoints import read_json
from jaxdp.released import load

from . import fail
from .define import Define

DEFINE = Define()
_RUN = DEFINE.string("run", None, "Directory of a finished run.")
_RELEASE = DEFINE.string("release", None, "A release/ directory or hub id, instead of --run.")
_BASE_MODEL = DEFINE.string(
    "base_model",
    None,
    "Directory, hub id or preset of the frozen weights, if not what the run or the adapter says.",
)
_INPUT = DEFINE.string("input", None, f"A file of reports: {', '.join(FORMATS)}.", required=True)
_OUTPUT = DEFINE.string("output", None, f"The file to write: {', '.join(WRITERS)}.", required=True)
_TEXT_COLUMN = DEFINE.string("text_column", "text", "Column or field with the report.")
_ID_COLUMN = DEFINE.string("id_column", None, "Column or field to keep in the output.")
_EVIDENCE = DEFINE.bool("evidence", False, "Show the sentence that each label found read.")
_THRESHOLDS = DEFINE.string(
    "thresholds", None, "JSON file: label -> least probability that is a 1, where it is not 0.5."
)
_BAD_ROWS = DEFINE.enum("bad_rows", "fail", ["fail", "skip"], "What to do with bad rows.")


def main() -> None:
    if (_RUN.value is None) == (_RELEASE.value is None):
        fail("give either --run or --release")
    classifier = load(_RUN.value or _RELEASE.value, base_model=_BASE_MODEL.value)
    labelled, skipped = label_file(
        classifier,
        Path(_INPUT.value),
        Path(_OUTPUT.value),
        text_column=_TEXT_COLUMN.value,
        skip_bad_rows=_BAD_ROWS.value == "skip",
        id_column=_ID_COLUMN.value,
        evidence=_EVIDENCE.value,
        thresholds=None if _THRESHOLDS.value is None else read_json(Path(_THRESHOLDS.value)),
    )
    for row in skipped:
        print(f"skipped row {row.number}: {row.problem}", file=sys.stderr)
    print(f"{labelled:,} reports labelled, {len(skipped):,} rows skipped")
