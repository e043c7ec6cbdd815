# SPDX-License-Identifier: Apache-2.0
"""A sweep's folder: sweep.json, results, private/, and one run directory for each member."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxdp import dp
from jaxdp.files import write_json
from jaxdp.run.directory import SECRET, RunError, read_secret, require_same
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import load_inputs

from .accounting import SweepPlan
from .members import Member


def describe(plan: SweepPlan) -> dict[str, Any]:
    """JSON-ready: members with settings and epsilon, groups, and what everything costs together."""
    return {
        "name": plan.sweep.name,
        "share_sampling": plan.sweep.share_sampling,
        "members": {
            name: {
                "group": plan.group_of(name),
                "seed": member.seed,
                "epsilon": plan.plans[name].epsilon(),
                "noise_multipliers": {
                    stage: m.noise_multiplier for stage, m in plan.plans[name].mechanisms().items()
                },
                "config": member.config.to_dict(),
            }
            for name, member in plan.members.items()
        },
        "groups": [
            {"members": names, "epsilon": plan.group_epsilon(i)}
            for i, names in enumerate(plan.groups)
        ],
        "joint": [dataclasses.asdict(cost) for cost in plan.joint_costs()],
    }


def read_begun(folder: Path) -> tuple[dict[str, Any], dict[str, Member]]:
    """(what `describe` gave when the sweep began, its members); RunError if there is no sweep."""
    try:
        described = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(f"{folder} holds no sweep (sweep.json)") from None
    return described, {n: Member.read(m, folder) for n, m in described["members"].items()}


def begin(plan: SweepPlan) -> None:
    """Makes the folder, or checks that it is of the same sweep, and enters the ledger. Nothing is
    done with the reports before, except that a ledger needs their fingerprint.

    Raises:
        RunError: the folder was begun with other members or settings; the message names them.
        LedgerError: the sweep would overdraw its budget.
    """
    folder = plan.sweep.path
    secret_file = folder / "private" / SECRET
    new = not (folder / "sweep.json").exists()
    if not new:
        _require_same_sweep(folder, plan)
    secret_file.parent.mkdir(parents=True, exist_ok=True)
    secret_file.parent.chmod(0o700)
    if not secret_file.exists():
        if not new:
            raise RunError(f"{secret_file} is missing; the sweep cannot be continued")
        secret = RunSecret.create(plan.sweep.research_seed)
        write_json(secret_file, {"secret": secret.root.hex()})
    if plan.sweep.ledger is not None:
        _enter_ledger(plan, new)
    if new:
        write_json(folder / "sweep.json", describe(plan))


def _require_same_sweep(folder: Path, plan: SweepPlan) -> None:
    described, started = read_begun(folder)
    if other := sorted(started.keys() ^ plan.members.keys()):
        what = "no longer" if other[0] in started else "not yet"
        raise RunError(
            f"{folder} was begun with other members: {other[0]} is {what} among them; choose "
            "another Sweep.name (what has been trained has been paid for)"
        )
    for name, member in started.items():
        require_same(folder / name, member.config, plan.members[name].config)
    if described["share_sampling"] != plan.sweep.share_sampling:
        raise RunError(f"{folder} was begun with the other Sweep.share_sampling")


def sampling_root(folder: Path, group: int) -> bytes:
    """256 secret bits from which all members of a group draw their samples."""
    secret, _ = read_secret(folder / "private")
    return secret.subsecret(f"samples of group {group}")


def _enter_ledger(plan: SweepPlan, new: bool) -> None:
    """One entry for each collection: what its members do together counts from now on, in full."""
    ledger = dp.Ledger(Path(plan.sweep.ledger))
    # With a research seed, sweeps have one secret; their names tell them apart.
    what = json.dumps(["ledger", plan.sweep.name, *plan.members])
    secret = RunSecret(sampling_root(plan.sweep.path, -1))
    sweep_id = RunSecret(secret.subsecret(what)).public_id()
    budget = plan.sweep.total_budget
    entered = []
    try:
        for number, cost in enumerate(plan.joint_costs(), start=1):
            run = f"{sweep_id}-{number}"
            limit = None if budget is None else (budget, cost.delta)
            # Other sections of the same reports have another fingerprint: it counts for each.
            members = [plan.members[name] for name in cost.members]
            configs = {member.reads: member.config for member in members}
            for data in [load_inputs(c) for c in configs.values()]:  # all, before any is entered
                fingerprint = ledger.fingerprint(data.training_records())
                ledger.plan(fingerprint, run, cost.mechanisms, total_budget=limit)
                entered.append((fingerprint, run))
    except dp.LedgerError:
        if new:  # refused as a whole: nothing has been done
            for fingerprint, run in entered:
                ledger.give_up(fingerprint, run, {})
        raise
