# SPDX-License-Identifier: Apache-2.0
"""Attacks our own training with canaries, and proves lower bounds on its epsilon.

    jaxdp audit --config audit_openi
    jaxdp audit --config audit_openi --config.audit.gradient_runs=1

Trains the configured head as it is, at a small epsilon, without privacy, and deliberately broken
in three ways; needs the extra `audit`. A table goes to the terminal; report.md, audit.json, roc.png
and epsilon.png go to <config.run.dir>/<config.run.name>. Ends with status 1 if correct code exceeds
its claim, or the attack is too weak to show what it has to.
"""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from jaxdp.audit.config import AuditConfig
from jaxdp.audit.run import HEADINGS, Finding, run_audit, showings, summary
from jaxdp.cli import fail
from jaxdp.files import write_json
from jaxdp.progress import Display
from jaxdp.report.audit import write_report
from jaxdp.runtime import prepare

from .define import Define

DEFINE = Define()
_CONFIG = DEFINE.config("config", "Name, or Python file with get_config().", required=True)
_JSON = DEFINE.string("json", None, "Also write the result to this file.")


def show(findings: list[Finding], config: AuditConfig, console: Console) -> None:
    title = (
        f"lower bounds on epsilon at delta {config.privacy.delta:g}, "
        f"{config.audit.confidence:.0%} confidence"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=heading == "trained")
    for finding in findings:
        table.add_row(*finding.cells())
    console.print(table)


def main() -> None:
    if _JSON.value is not None and not Path(_JSON.value).parent.is_dir():
        fail(f"--json {_JSON.value}: its folder does not exist")
    prepare()
    console = Console()
    config = AuditConfig.from_dict(_CONFIG.value.to_dict())
    directory = Path(config.run.dir) / config.run.name
    directory.mkdir(parents=True, exist_ok=True)
    with Display(console, "audit", status="starting") as display:
        findings = run_audit(config, lambda status: display.update(0, status))
    write_report(directory, config, findings)
    if _JSON.value is not None:
        write_json(Path(_JSON.value), summary(config, findings))
    show(findings, config, console)
    console.print(f"report and plots: {directory}")
    missing = [what for what, did in showings(findings).items() if not did]
    if missing:
        fail("not shown: " + "; ".join(missing))
