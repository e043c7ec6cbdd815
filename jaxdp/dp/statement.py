# SPDX-License-Identifier: Apache-2.0
"""The privacy statement: what is claimed, from the numbers that ran."""

import dataclasses
import decimal
import importlib.metadata
import json
import math
from collections.abc import Mapping
from typing import Any

import dp_accounting

from .accounting import composed_event, epsilon_pld, epsilon_rdp
from .groups import group_epsilon, swap_epsilon
from .mechanism import SubsampledGaussian

GROUP_SIZES = (2, 5, 10, 20, 50, 100)
"""Reports of one patient for which a report-level statement gives epsilon. Public numbers: how many
reports patients really have must not get into a statement."""

NOT_COVERED = (
    "the choice of hyper-parameters, if any was made by looking at these private reports",
    "decision thresholds, if they were tuned on private reports",
    "metrics computed on validation and test reports (metrics.json), unless those are public",
    "everything under private/: checkpoints, logs, diagnostics and per-report predictions",
)


def privacy_statement(
    mechanisms: Mapping[str, SubsampledGaussian],
    *,
    delta: float,
    privacy_unit: str,
    seed_policy: str,
    label_origin: str,
    noise_generator: str = "not stated",
    max_reports_per_patient: int | None = None,
    public_start: str | None = None,
) -> dict[str, Any]:
    """The JSON-ready statement of a run.

    Guarantee: epsilon and delta hold for the released adapter under add/remove of one privacy
    unit, if `mechanisms` are what ran, with `steps` the number of steps TAKEN. `dp_event` is the
    same as a dp-accounting event: `event_from_json` reads it back, so anyone can recompute epsilon.

    Args:
        mechanisms: stage name -> mechanism, in the order they ran. Empty: training without
            privacy; epsilon is then None and says so in words.
        delta: in (0, 1).
        privacy_unit: "report" or "patient".
        seed_policy: "os-entropy" or "fixed-for-research".
        label_origin: who made the labels.
        noise_generator: what turns the seed into noise.
        max_reports_per_patient: more than these were not trained on.
        public_start: what was learnt, without noise, from public data before; None for nothing.

    Raises:
        ValueError: stages of one run differ in `units`, or see `epsilon_pld`.
    """
    stages = list(mechanisms.values())
    private = bool(stages)
    if len({m.units for m in stages}) > 1:
        raise ValueError("units must be the same number in all stages of a run")
    units = stages[0].units if private else None
    epsilon = epsilon_pld(stages, delta) if private else None
    groups, swap = None, None
    if privacy_unit == "report" and epsilon is not None and math.isfinite(epsilon):
        groups = _group_epsilons(stages, delta, max_reports_per_patient)
        if max_reports_per_patient is not None:
            swap = swap_epsilon(tuple(stages), delta)
    event = composed_event(stages) if private else dp_accounting.NonPrivateDpEvent()
    return {
        "epsilon": json_number(epsilon),
        "delta": delta if private else None,
        "privacy_unit": privacy_unit,
        "neighboring_relation": "add-or-remove-one",
        "accountant": "pld",
        "accountant_version": f"dp-accounting {importlib.metadata.version('dp-accounting')}",
        "epsilon_rdp": json_number(epsilon_rdp(stages, delta)) if private else None,
        "max_reports_per_patient": max_reports_per_patient,
        "group_epsilon": groups,
        "swap_epsilon": _claimed(swap),
        "units": units,
        "units_are": "configured, hence public; the run does not publish how many there really are",
        "seed_policy": seed_policy,
        "noise_generator": noise_generator,
        "mechanisms": [
            {
                "stage": name,
                "sampling": "poisson",
                "sampling_probability": m.sampling_probability,
                "noise_multiplier": m.noise_multiplier,
                "l2_clip_norm": m.l2_clip_norm,
                "expected_batch_size": m.expected_batch_size,
                "steps": m.steps,
            }
            for name, m in mechanisms.items()
        ],
        "dp_event": _event_json(event.to_named_tuple()),
        "public_start": public_start,
        "labels": label_origin,
        "not_covered": list(NOT_COVERED),
        "warnings": _warnings(epsilon, delta, units, seed_policy),
    }


def delta_warning(delta: float, units: int) -> str | None:
    """What is wrong with a delta that bounds nothing, before anything is run; None if it does."""
    if delta < 1 / units:
        return None
    why = "publishing a random unit outright could satisfy it"
    return f"delta is not below 1 / units = {1 / units:.3g}; {why}"


def _warnings(
    epsilon: float | None, delta: float, units: int | None, seed_policy: str
) -> list[str]:
    """What a reader must know before the numbers; epsilon and units are None without privacy."""
    if epsilon is None or units is None:
        return ["trained WITHOUT differential privacy: the adapter may reveal reports"]
    warnings = []
    if math.isinf(epsilon):
        warnings.append("a stage ran without noise: epsilon is infinite and nothing is guaranteed")
    if delta >= 1 / units:
        warnings.append(
            f"delta {delta:g} is not below 1/units = {1 / units:.3g}: a mechanism that publishes a "
            "random unit outright could satisfy it; choose a smaller delta"
        )
    if seed_policy != "os-entropy":
        warnings.append(
            "sampling and noise come from a seed in the configuration, for reproducible research: "
            "whoever knows it can undo the noise, so this adapter must be treated as unprotected"
        )
    return warnings


def _group_epsilons(
    stages: list[SubsampledGaussian], delta: float, most: int | None
) -> dict[str, float | None]:
    """Number of reports of one patient -> their epsilon together; None where none is claimed."""
    result: dict[str, float | None] = {}
    sizes = [k for k in GROUP_SIZES if most is None or k < most]
    for size in sizes if most is None else [*sizes, most]:
        beyond = None in result.values()  # larger groups cost more
        result[str(size)] = None if beyond else _claimed(group_epsilon(stages, delta, size))
    return result


def _claimed(epsilon: float | None) -> float | None:
    return None if epsilon is None or math.isinf(epsilon) else epsilon


def event_from_json(value: Any) -> Any:
    """`dp_event` of a statement as the `dp_accounting.DpEvent` it was written from."""
    if isinstance(value, list):
        return [event_from_json(v) for v in value]
    if not isinstance(value, dict):
        return value
    fields = {k: event_from_json(v) for k, v in value.items() if not k.endswith("_name")}
    # By name, within dp_accounting only: a statement from elsewhere must not choose what to run.
    kind = getattr(dp_accounting, value.get("class_name", ""), None)
    if not (isinstance(kind, type) and issubclass(kind, dp_accounting.DpEvent)):
        raise ValueError(f"dp_event: class_name {value.get('class_name')!r} is no DpEvent")
    return kind(**fields)


def recomputed_epsilon(statement: Mapping[str, Any]) -> float | None:
    """Epsilon of a statement read back from its JSON, from `dp_event` by dp-accounting's PLD alone.

    None for a statement of training without privacy; infinity for a stage without noise. Does not
    look at the claimed `epsilon`: compare it with the result.

    Raises:
        ValueError: a field is missing or malformed, or `dp_event` is not what `mechanisms` says.
    """
    try:
        stages = [
            SubsampledGaussian(
                units=statement["units"],
                **{f.name: m[f.name] for f in dataclasses.fields(SubsampledGaussian)[1:]},
            )
            for m in statement["mechanisms"]
        ]
        stated = [m["sampling_probability"] for m in statement["mechanisms"]]
        event, delta = event_from_json(statement["dp_event"]), statement["delta"]
    except KeyError as error:
        raise ValueError(f"the statement has no field {error}") from None
    except TypeError as error:
        raise ValueError(f"the statement is malformed: {error}") from None
    if not stages and event == dp_accounting.NonPrivateDpEvent():
        return None
    if event != composed_event(stages) or stated != [m.sampling_probability for m in stages]:
        raise ValueError("dp_event is not the composition of the mechanisms that are listed")
    return epsilon_pld(stages, delta)


def json_number(value: float | None) -> float | str | None:
    """JSON has no infinity: stages without noise have epsilon "infinite"."""
    return "infinite" if value is not None and math.isinf(value) else value


def _event_json(value: Any) -> Any:
    """A DpEvent's named tuple as nested JSON objects."""
    if hasattr(value, "_asdict"):
        return {k: _event_json(v) for k, v in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [_event_json(v) for v in value]
    return value


def statement_markdown(statement: Mapping[str, Any]) -> str:
    """PRIVACY.md: the statement in words, ending with the JSON it was written from."""
    unit = statement["privacy_unit"]
    epsilon = statement["epsilon"]
    lines = ["# Privacy statement", ""]
    if epsilon is None:
        lines += [
            "This adapter was trained **without** differential privacy. It carries no guarantee",
            "and may reveal the reports it was trained on.",
        ]
    elif epsilon == "infinite":
        lines += [
            "Reports were clipped, but a stage ran **without noise**: epsilon is infinite. This",
            "adapter carries no guarantee and may reveal the reports it was trained on.",
        ]
    else:
        lines += [
            f"This adapter is **(epsilon = {rounded_up(epsilon)}, "
            f"delta = {statement['delta']:g})-differentially private** with respect to adding or "
            f"removing one **{unit}**.",
            "",
            f"In words: whatever is done with the adapter, what anyone learns from it about one "
            f"{unit} is nearly what they would have learnt had that {unit} not been there. The "
            "odds of any conclusion change by a factor of at most "
            f"e^epsilon = {rounded_up(math.exp(epsilon))}, except with probability delta.",
            "",
            f"Accounting: privacy loss distributions ({statement['accountant_version']}); "
            f"the looser Renyi bound is {rounded_up(statement['epsilon_rdp'])}. "
            f"Units: {statement['units']:,} {unit}s, as configured. Randomness: "
            f"{statement['seed_policy']}; noise from {statement['noise_generator']}.",
        ]
    if statement["mechanisms"]:
        lines += [
            "",
            "| stage | sampling | probability | noise multiplier | clip norm | expected batch "
            "| steps |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {m['stage']} | {m['sampling']} | {m['sampling_probability']:.6g} | "
            f"{m['noise_multiplier']:.6g} | {m['l2_clip_norm']:g} | {m['expected_batch_size']:g} | "
            f"{m['steps']} |"
            for m in statement["mechanisms"]
        ]
    if statement["group_epsilon"] is not None:
        lines += _groups_in_words(statement)
    lines += ["", f"Labels: {statement['labels']}."]
    if statement.get("public_start") is not None:
        lines += [
            "",
            f"Public start: {statement['public_start']}. None of the protected {unit}s had a part "
            "in that, so it costs no epsilon, and what it has learnt is not protected.",
        ]
    lines += ["", "Not covered:", ""]
    lines += [f"- {item}" for item in statement["not_covered"]]
    if statement["warnings"]:
        lines += ["", "Warnings:", ""] + [f"- **{item}**" for item in statement["warnings"]]
    lines += ["", "```json", json.dumps(statement, indent=2), "```", ""]
    return "\n".join(lines)


def _groups_in_words(statement: Mapping[str, Any]) -> list[str]:
    """What the report as the unit leaves open."""

    def cell(epsilon: float | None) -> str:
        return "none is claimed" if epsilon is None else rounded_up(epsilon)

    lines = [
        "",
        "The unit is one report, not one patient. What several reports of a patient say together "
        "is protected less: a finding that recurs in them, or that the patient is among the data "
        "at all. For reports of one patient that are added or removed together, epsilon at the "
        "same delta is at most:",
        "",
        "| reports | epsilon |",
        "|---|---|",
        *(f"| {size} | {cell(e)} |" for size, e in statement["group_epsilon"].items()),
        "",
    ]
    most = statement["max_reports_per_patient"]
    if most is None:
        return [*lines, "How many reports a patient has is private, and not told here."]
    return [
        *lines,
        f"No patient has more than {most} in training, so the last line holds for any patient with "
        "all reports. Which ones are kept is decided first, and the unit is one of those: a report "
        "that is added to the collection can displace another one of its patient. For such a swap "
        f"epsilon is at most: {cell(statement['swap_epsilon'])}.",
    ]


def rounded_up(value: float) -> str:
    """Four significant digits, never below the value: a rounded-down epsilon is a false claim."""
    exact = decimal.Decimal(value)
    context = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING)
    return f"{float(context.plus(exact)):.4g}"
