# SPDX-License-Identifier: Apache-2.0
"""A sweep's folder: sweep.json, results, private/, and one run directory for each member."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxdp import dp
from jaxdp.config import Config
from jaxdp.files import write_json
from jaxdp.run.directory import RunError, differences
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
                "group": next(i for i, g in enumerate(plan.groups) if name in g),
                "seed": member.seed,
                "epsilon": plan.epsilon(name),
                "noise_multipliers": {
                    stage: m.noise_multiplier for stage, m in plan.plans[name].mechanisms().items()
                },
                "config": member.config.to_dict(),
            }
            for name, member in plan.members.items()
        },
        "groups": [
            {"members": list(names), "epsilon": plan.group_epsilon(i)}
            for i, names in enumerate(plan.groups)
        ],
        "joint": [cost.to_dict() for cost in plan.joint_costs()],
    }


def read_members(folder: Path) -> dict[str, Member]:
    """The members that a sweep's folder was started with; RunError if there is no sweep."""
    members = {}
    for name, member in read_description(folder)["members"].items():
        config = Config.from_dict(member["config"])
        here = dataclasses.replace(config.run, dir=str(folder))  # it may have been moved
        members[name] = Member(dataclasses.replace(config, run=here), member["seed"])
    return members


def read_description(folder: Path) -> dict[str, Any]:
    """What `describe` gave when the sweep began; RunError if there is none."""
    try:
        return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(f"{folder} holds no sweep (sweep.json)") from None


def begin(plan: SweepPlan) -> None:
    """Makes the folder, or checks that it is of the same sweep, and enters the ledger.

    Nothing is done with the reports before, except that a ledger needs their fingerprint.

    Raises:
        RunError: the folder was begun with other members or settings; the message names them.
        LedgerError: the sweep would overdraw its budget.
    """
    folder = plan.sweep.path
    private = folder / "private"
    new = not (folder / "sweep.json").exists()
    if not new:
        check_same(folder, plan)
    private.mkdir(parents=True, exist_ok=True)
    private.chmod(0o700)
    if not (private / "secret.json").exists():
        if not new:
            raise RunError(f"{private / 'secret.json'} is missing; the sweep cannot be continued")
        secret = RunSecret.create(plan.sweep.research_seed)
        write_json(private / "secret.json", {"secret": secret.root.hex()})
    if plan.sweep.ledger is not None:
        _enter_ledger(plan, new)
    if new:
        write_json(folder / "sweep.json", describe(plan))


def check_same(folder: Path, plan: SweepPlan) -> None:
    """RunError unless `folder` was begun with exactly these members."""
    started = read_members(folder)
    missing, surplus = started.keys() - plan.members.keys(), plan.members.keys() - started.keys()
    for names, what in ((missing, "no longer"), (surplus, "not yet")):
        if names:
            raise RunError(
                f"{folder} was begun with other members: {sorted(names)[0]} is {what} among them; "
                "choose another Sweep.name (what has been trained has been paid for)"
            )
    for name, member in started.items():
        require_same(folder / name, member.config, plan.members[name].config)
    if read_description(folder)["share_sampling"] != plan.sweep.share_sampling:
        raise RunError(f"{folder} was begun with the other Sweep.share_sampling")


def require_same(path: Path, started: Config, now: Config) -> None:
    """RunError, which names the fields, if settings differ in more than where and how often results
    are written."""
    changed = differences(started, now)
    if changed:
        fields = ", ".join(f"config.{name} = {value!r}" for name, value in changed)
        raise RunError(f"{path} was started with other settings: there, {fields}")


def sampling_root(folder: Path, group: int) -> bytes:
    """256 secret bits from which all members of a group draw their samples."""
    try:
        content = json.loads((folder / "private" / "secret.json").read_text(encoding="utf-8"))
        secret = RunSecret(bytes.fromhex(content["secret"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{folder / 'private' / 'secret.json'} is missing or damaged") from None
    return secret.subsecret(f"samples of group {group}")


def _enter_ledger(plan: SweepPlan, new: bool) -> None:
    """One entry for each collection: what its members do together counts from now on, in full."""
    ledger = dp.Ledger(Path(plan.sweep.ledger))
    # With a research seed, sweeps have one secret; their names tell them apart.
    what = json.dumps(["ledger", plan.sweep.name, *plan.members])
    secret = RunSecret(sampling_root(plan.sweep.path, -1))
    sweep_id = RunSecret(secret.subsecret(what)).public_id()
    budget = plan.sweep.total_budget
    entered: list[tuple[str, str]] = []
    try:
        for number, cost in enumerate(plan.joint_costs(), start=1):
            # Other sections of the same reports have another fingerprint: it counts for each.
            configs = [plan.members[name].config for name in cost.members]
            inputs = {json.dumps([vars(c.data), vars(c.teacher)]): c for c in configs}
            for data in [load_inputs(c) for c in inputs.values()]:
                fingerprint = ledger.fingerprint(data.training_records())
                limit = None if budget is None else (budget, cost.delta)
                run = f"{sweep_id}-{number}"
                ledger.plan(fingerprint, run, cost.mechanisms, total_budget=limit)
                entered.append((fingerprint, run))
    except dp.LedgerError:
        if new:  # refused as a whole: nothing has been done
            for fingerprint, run in entered:
                ledger.give_up(fingerprint, run, {})
        raise


def log_file(member: Member) -> Path:
    """Where a member's console output goes."""
    private = member.path / "private"
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    return private / "log.txt"
