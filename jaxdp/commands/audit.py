# SPDX-License-Identifier: Apache-2.0
"""Attacks our own training with canaries, and proves lower bounds on its epsilon.

    jaxdp audit --config audit_openi
    jaxdp audit --config audit_openi --config.audit.gradient_runs=1

Trains the configured head as it is, at a small epsilon, without privacy, and deliberately broken
in three ways; needs the extra `audit`. A table goes to the terminal; report.md, audit.json, roc.png
and epsilon.png go to <config.run.dir>/<config.run.name>. Ends with status 1 if correct code exceeds
its claim, or the attack is too weak to show what it has to.
"""

from rich.console import Console

from jaxdp.audit.config import AuditConfig
from jaxdp.audit.run import HEADINGS, run_audit, summary
from jaxdp.progress import Display
from jaxdp.report.audit import write_report

from . import fail, table
from .define import Define

DEFINE = Define()
_CONFIG = DEFINE.config()
DEFINE.json("Also write the result to this file.")


def main() -> None:
    console = Console()
    config = AuditConfig.from_dict(_CONFIG.value.to_dict())
    directory = config.path
    directory.mkdir(parents=True, exist_ok=True)
    with Display(console, "audit", status="starting") as display:
        findings = run_audit(config, lambda status: display.update(0, status))
    found = summary(config, findings)
    write_report(directory, found, findings)
    DEFINE.write_json(found)
    title = "lower bounds on epsilon at delta {delta:g}, {confidence:.0%} confidence"
    cells = [finding.cells() for finding in findings]
    console.print(table(title.format_map(found), HEADINGS, cells))
    console.print(f"report and plots: {directory}")
    missing = [what for what, did in found["showings"].items() if not did]
    if missing:
        fail("not shown: " + "; ".join(missing))
