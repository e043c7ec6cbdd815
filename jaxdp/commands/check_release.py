# SPDX-License-Identifier: Apache-2.0
"""Checks that a release bundle holds what may be shared, and is what it claims to be.

    jaxdp check-release runs/openi_eps8/release
    jaxdp check-release runs/openi_eps8/release --base bert-directory

Opens every file: nothing is there that the release contract does not name, privacy.json recomputes,
PRIVACY.md agrees with it, and the adapter's tensors are declared, finite and changed by training.
With --base, the backbone's directory, it also compares tokenizer and biases with the backbone's.
Ends with status 1 if a check fails. Training runs the same checks before it publishes a release.
"""

import dataclasses
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from jaxdp.run.release_check import check_release

from . import table
from .define import Define

DEFINE = Define()
_BASE = DEFINE.string("base", None, "Directory of the backbone, to compare with.")
DEFINE.json("Also write the findings to this file.")


def main(release: str) -> None:
    base = None if _BASE.value is None else Path(_BASE.value)
    findings = check_release(Path(release), base)
    DEFINE.write_json([dataclasses.asdict(finding) for finding in findings])
    cells = [(f.check, "passed" if f.passed else "FAILED", escape(f.text)) for f in findings]
    Console().print(table("", ("check", "result", "what was seen"), cells))
    failed = [finding for finding in findings if not finding.passed]
    for finding in failed:
        print(f"error: {finding.check}: {finding.text}", file=sys.stderr)
    sys.exit(1 if failed else 0)
