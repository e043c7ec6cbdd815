# SPDX-License-Identifier: Apache-2.0
"""Epsilon and noise of a DP training run, before it starts; or a statement checked after it.

    jaxdp account --epsilon 0.1,1,8 --delta 1e-5 --units 50232 --batch 1024 --steps 1000
    jaxdp account --noise_multiplier 2.5 --units 50232 --batch 1024 --steps 1000
    jaxdp account --statement runs/openi_eps8/release/privacy.json
    jaxdp account --ledger ledger.jsonl --delta 1e-5
    jaxdp account --ledger ledger.jsonl --give_up runs/given_up

The first prints the least noise multiplier that meets each epsilon, the second the epsilon that
each noise multiplier costs, both under add/remove of one unit with Poisson sampling at probability
batch / units; by PLD (tight; what training uses), and by Renyi DP for comparison. The third
recomputes a statement's epsilon with dp-accounting and fails if it is not the one claimed. The
fourth prints what all recorded runs on the same data cost together. The last does so after a run
that was stopped is given up: it then counts with the steps it took instead of all it had planned.
Should it be resumed after all, it counts in full again.
"""

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from scipy.optimize import brentq

from jaxdp import dp
from jaxdp.models.checkpoints import read_json
from jaxdp.run.give_up import give_up

from . import fail, numbers, table
from .define import Define

DEFINE = Define()
_EPSILON = DEFINE.list("epsilon", None, "Targets, separated by commas: 0.1,1,8.")
_NOISE = DEFINE.list("noise_multiplier", None, "Noise multipliers, instead of --epsilon.")
_DELTA = DEFINE.float("delta", 1e-5, "Should be well below 1 / units.")
_UNITS = DEFINE.integer("units", None, "Privacy units: reports or patients to train on.")
_BATCH = DEFINE.float("batch", None, "Expected units per step.")
_PROBABILITY = DEFINE.float(
    "sampling_probability", None, "Of a unit in a step, instead of --units and --batch."
)
_STEPS = DEFINE.integer("steps", None, "Training steps.")
_STATEMENT = DEFINE.string("statement", None, "A privacy.json to check, instead.")
_LEDGER = DEFINE.string("ledger", None, "A ledger to add up, instead.")
_GIVE_UP = DEFINE.string("give_up", None, "With --ledger: directory of a run given up.")
DEFINE.json("Also write the result to this file.")

HEADINGS = {
    "target": "target\nepsilon",
    "noise_multiplier": "noise\nmultiplier",
    "epsilon": "\nepsilon",
    "epsilon_rdp": "epsilon\nby Renyi",
    "noise_multiplier_rdp": "noise multiplier\nby Renyi",
}


def renyi_noise(mechanism: dp.SubsampledGaussian, epsilon: float, delta: float) -> float | None:
    """What calibrating by Renyi DP would need; None where its orders do not reach the target.

    `mechanism` holds PLD's answer, from which Renyi's is never far.
    """

    def excess(noise):
        cost = dp.epsilon_rdp([mechanism.replace(noise_multiplier=noise)], delta)
        return math.log(cost / epsilon)

    least = mechanism.noise_multiplier
    if excess(least) <= 0:
        return least
    if excess(4 * least) > 0:
        return None
    return brentq(excess, least, 4 * least, rtol=1e-5)


def account(console: Console) -> dict[str, Any]:
    """A row for each --epsilon or --noise_multiplier."""
    units, batch, steps, delta = _UNITS.value, _BATCH.value, _STEPS.value, _DELTA.value
    probability = _PROBABILITY.value
    if probability is not None and (units, batch) != (None, None):
        fail("give --units and --batch, or --sampling_probability alone")
    for flag in (_STEPS,) if probability is not None else (_UNITS, _BATCH, _STEPS):
        if flag.value is None:
            fail(f"--{flag.name} is needed")
    # Of the two, only their quotient matters.
    sampling = (units, batch) if probability is None else (1, probability)
    run, rows = dp.SubsampledGaussian(*sampling, steps, 1.0, 0.0), []
    for target in numbers("epsilon", _EPSILON.value):
        found = dp.calibrate_noise(run, target, delta)
        rows.append({"target": target, "noise_multiplier": found.noise_multiplier})
        rows[-1]["noise_multiplier_rdp"] = renyi_noise(found, target, delta)
    rows += [{"noise_multiplier": noise} for noise in numbers("noise_multiplier", _NOISE.value)]
    if not rows:
        fail("--epsilon or --noise_multiplier must name at least one number")
    for row in rows:
        stage = [run.replace(noise_multiplier=row["noise_multiplier"])]
        row["epsilon"] = dp.epsilon_pld(stage, delta)
        row["epsilon_rdp"] = dp.epsilon_rdp(stage, delta)
    title = f"delta {delta:g}, sampling probability {run.sampling_probability:.6g}, {steps:,} steps"
    columns = [name for name in HEADINGS if name in rows[0]]
    cells = [["-" if row[n] is None else f"{row[n]:.6g}" for n in columns] for row in rows]
    console.print(table(title, map(HEADINGS.get, columns), cells, left=0))
    if units is not None and (warning := dp.delta_warning(delta, units)):
        console.print(f"Warning: {warning}.")
    return {
        "units": units,
        "expected_batch_size": batch,
        "steps": steps,
        "delta": delta,
        "sampling_probability": run.sampling_probability,
        "neighboring_relation": "add-or-remove-one",
        "rows": [{name: dp.json_number(value) for name, value in row.items()} for row in rows],
    }


def check(path: Path, console: Console) -> dict[str, float | str | None]:
    """Recomputes a statement; ends the program unless its epsilon is the one claimed."""
    statement = read_json(path)
    try:
        recomputed = dp.json_number(dp.recomputed_epsilon(statement))
        claimed = statement["epsilon"]
    except (KeyError, TypeError, ValueError) as error:
        fail(f"{path}: {error}")
    number = isinstance(claimed, float | int) and isinstance(recomputed, float)
    # A newer dp-accounting may discretise a little differently; no reader would call that a lie.
    if not (math.isclose(claimed, recomputed, rel_tol=1e-3) if number else claimed == recomputed):
        fail(f"{path}: claims epsilon {claimed}, but its dp_event costs {recomputed}")
    console.print(f"{path}: epsilon {claimed} at delta {statement['delta']}, recomputed: agrees")
    return {"claimed": claimed, "recomputed": recomputed}


def add_up(path: Path, console: Console) -> dict[str, Any]:
    """A row for each data set in the ledger, which is named by its keyed hash."""
    if not path.is_file():
        fail(f"{path}: no such ledger")
    ledger = dp.Ledger(path)
    if _GIVE_UP.value is not None:
        position = give_up(Path(_GIVE_UP.value), ledger)
        where = f"{position.step} steps of stage {position.stage + 1}" if position else "no step"
        console.print(f"{_GIVE_UP.value}: given up after {where}", soft_wrap=True)
    rows, cells = [], []
    for fingerprint, runs in ledger.runs().items():
        epsilon = ledger.epsilon(fingerprint, _DELTA.value)
        rows.append({"data": fingerprint, "runs": len(runs), "epsilon": dp.json_number(epsilon)})
        cells.append([fingerprint, str(len(runs)), f"{epsilon:.6g}"])
    title = f"together, at delta {_DELTA.value:g}"
    console.print(table(title, ("data", "runs", "epsilon"), cells, left=1))
    return {"delta": _DELTA.value, "data": rows}


def main() -> None:
    tasks = (_EPSILON, _NOISE, _STATEMENT, _LEDGER)
    if sum(flag.value is not None for flag in tasks) != 1:
        fail("give one of " + ", ".join(f"--{flag.name}" for flag in tasks))
    if _GIVE_UP.value is not None and _LEDGER.value is None:
        fail("--give_up needs --ledger")
    console = Console()
    try:
        if _STATEMENT.value is not None:
            result = check(Path(_STATEMENT.value), console)
        elif _LEDGER.value is not None:
            result = add_up(Path(_LEDGER.value), console)
        else:
            result = account(console)
    except ValueError as error:
        fail(error)
    DEFINE.write_json(result)
