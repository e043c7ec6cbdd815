# SPDX-License-Identifier: Apache-2.0
"""Trains all members of a sweep, one after the other or as jobs, and says what they cost together.

    jaxdp sweep --config sweep_openi --dry-run
    jaxdp sweep --config sweep_openi
    jaxdp sweep --config sweep_openi --set model.dtype=bfloat16 --seeds 5
    jaxdp sweep --config sweep_paper --executor slurm \\
        --executor_options slurm_partition=gpu,gpus_per_node=1,timeout_min=720

--config is a Python file with get_sweep(). Results go to <dir>/<name>: sweep.json (members, groups,
joint cost), results.parquet and results.csv (member x label x metric), and a run directory for each
member. The same command goes on where it was stopped, killed or lost a job: finished members are
skipped if their settings are the same, interrupted ones resumed. `jaxdp report` makes the page.
"""

import dataclasses
import sys

from rich.console import Console

from jaxdp.run.directory import RunError
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.train import Interrupted
from jaxdp.sweep.accounting import SweepPlan, plan_sweep
from jaxdp.sweep.directory import begin, describe
from jaxdp.sweep.estimate import estimate_seconds
from jaxdp.sweep.execute import EXECUTORS, finished, run_group, run_jobs
from jaxdp.sweep.members import Sweep, load_sweep, override
from jaxdp.sweep.progress import clock, joint_lines, plan_table, watching, winner_lines
from jaxdp.sweep.results import results_table, write_results

from . import table
from .define import Define

DEFINE = Define()
_CONFIG = DEFINE.string("config", None, "Name, or Python file with get_sweep().", required=True)
_SET = DEFINE.multi_string(
    "set", [], "section.field=value for all members, or grid:section.field=value. Repeatable."
)
_DIR = DEFINE.string("dir", None, "Where the sweep's folder goes, instead of the file's.")
_NAME = DEFINE.string("name", None, "The sweep's folder, instead of the file's.")
_SEEDS = DEFINE.integer("seeds", None, "Repetitions of each member, instead of the file's.")
_SHARE = DEFINE.bool("share_sampling", None, "Members of a group draw the same reports.")
_RESEARCH = DEFINE.integer("research_seed", None, "Makes all repeatable, and unprotected.")
_LEDGER = DEFINE.string("ledger", None, "File that records the sweep before it is run.")
_BUDGET = DEFINE.float("total_budget", None, "Epsilon that all in the ledger may cost.")
_DRY_RUN = DEFINE.bool("dry_run", False, "Print the plan, its cost and its time; no more.")
DEFINE.alias("dry-run", "dry_run")
_EXECUTOR = DEFINE.enum(
    "executor", "inline", EXECUTORS, "In this process, or by submitit: one job for each group."
)
_OPTIONS = DEFINE.list("executor_options", [], "submitit's: slurm_partition=gpu,...")
DEFINE.json("Also write the plan, with all settings, to this file.")


def read_sweep() -> Sweep:
    """The file's, with what the flags change."""
    flags = (_DIR, _NAME, _SEEDS, _SHARE, _RESEARCH, _LEDGER, _BUDGET)
    changes = {flag.name: flag.value for flag in flags if flag.value is not None}
    sweep = override(load_sweep(_CONFIG.value), _SET.value)
    if "seeds" in changes:
        changes["grids"] = [dataclasses.replace(grid, seeds=None) for grid in sweep.grids]
    return dataclasses.replace(sweep, **changes)


def train_all(plan: SweepPlan, interrupt: Interrupt, console: Console) -> list[str]:
    """Trains what is lacking; errors of groups. Stops early where it is asked to."""
    folder = plan.sweep.path
    lacking = [
        index
        for index, names in enumerate(plan.groups)
        if not all([finished(plan.members[name]) for name in names])
    ]
    errors = []
    with watching(plan, console):
        if _EXECUTOR.value == "inline":
            for index in lacking:
                try:
                    run_group(folder, index, interrupt)
                except FloatingPointError as error:  # other groups need not wait for that
                    errors.append(str(error))
            return errors
        options = dict(option.partition("=")[::2] for option in _OPTIONS.value)
        return run_jobs(folder, lacking, _EXECUTOR.value, options, interrupt)


def main() -> None:
    console = Console(highlight=False, soft_wrap=True)
    plan = plan_sweep(read_sweep())
    DEFINE.write_json(describe(plan))
    if _DRY_RUN.value:
        alone, total = estimate_seconds(plan)
        console.print(table("", *plan_table(plan, alone), left=1))
        if total:
            console.print(f"in all, one program after the other, roughly {clock(total)}")
        console.print(*joint_lines(plan), sep="\n")
        return
    begin(plan)
    console.print(*joint_lines(plan), sep="\n")
    errors = []
    with Interrupt() as interrupt:
        try:
            errors = train_all(plan, interrupt, console)
        except Interrupted:
            pass  # `received` says so, too
        finally:
            write_results(plan.sweep.path, results_table(plan.members))
    done = sum(finished(member) for member in plan.members.values())
    if errors:
        raise RunError("; ".join(errors) + "; the same command trains what is lacking")
    if interrupt.received is not None:
        print(
            f"stopped and saved; {done} of {len(plan.members)} members are finished; the same "
            "command goes on",
            file=sys.stderr,
        )
        sys.exit(128 + interrupt.received)
    for line in winner_lines(plan):
        console.print(line)
    console.print(f"results of {done} members: {plan.sweep.path}/results.parquet and .csv")
