# SPDX-License-Identifier: Apache-2.0
"""The privacy statement: true, complete, and recomputable by anyone from its JSON."""

import json
import math

import dp_accounting
import pytest
from dp_accounting import pld

from jaxdp.dp import (
    SubsampledGaussian,
    epsilon_pld,
    epsilon_rdp,
    event_from_json,
    group_epsilon,
    privacy_statement,
    recomputed_epsilon,
    statement_markdown,
)

DELTA = 1e-5
HEAD = SubsampledGaussian(
    units=3164, expected_batch_size=3164, steps=50, l2_clip_norm=1.0, noise_multiplier=40.0
)
LORA = SubsampledGaussian(
    units=3164, expected_batch_size=512, steps=100, l2_clip_norm=0.1, noise_multiplier=3.0
)


def statement(mechanisms=None, **changes):
    arguments = dict(
        delta=DELTA, privacy_unit="report", seed_policy="os-entropy", label_origin="MeSH"
    )
    stages = {"head": HEAD, "lora": LORA} if mechanisms is None else mechanisms
    return privacy_statement(stages, **{**arguments, **changes})


def recomputed(text: str) -> float:
    """The recipe of docs/privacy.md: epsilon from privacy.json by dp-accounting alone."""

    def event(value):
        if isinstance(value, list):
            return [event(v) for v in value]
        if not isinstance(value, dict):
            return value
        fields = {k: event(v) for k, v in value.items() if not k.endswith("_name")}
        return getattr(dp_accounting, value["class_name"])(**fields)

    claim = json.loads(text)
    accountant = pld.PLDAccountant().compose(event(claim["dp_event"]))
    return accountant.get_epsilon(claim["delta"])


def test_states_what_ran():
    s = statement()
    assert s["epsilon"] == epsilon_pld([HEAD, LORA], DELTA)
    assert s["epsilon_rdp"] == epsilon_rdp([HEAD, LORA], DELTA) > s["epsilon"]
    assert s["delta"] == DELTA and s["units"] == 3164 and s["privacy_unit"] == "report"
    assert s["neighboring_relation"] == "add-or-remove-one"
    assert s["accountant"] == "pld" and s["accountant_version"].startswith("dp-accounting 0.")
    assert s["seed_policy"] == "os-entropy" and s["labels"] == "MeSH"
    assert s["mechanisms"][1] == {
        "stage": "lora",
        "sampling": "poisson",
        "sampling_probability": 512 / 3164,
        "noise_multiplier": 3.0,
        "l2_clip_norm": 0.1,
        "expected_batch_size": 512,
        "steps": 100,
    }
    assert s["warnings"] == []


def test_epsilon_recomputes_from_the_json_by_dp_accounting_alone():
    s = statement()
    assert recomputed(json.dumps(s)) == s["epsilon"]


def test_event_survives_json():
    s = json.loads(json.dumps(statement()))
    assert event_from_json(s["dp_event"]) == dp_accounting.ComposedDpEvent(
        [HEAD.dp_event, LORA.dp_event]
    )


@pytest.mark.parametrize("name", ["os", "ComposedEvent", "calibrate_dp_mechanism", "", None])
def test_a_forged_event_is_refused(name):
    with pytest.raises(ValueError, match="class_name"):
        event_from_json(
            {"module_name": "os", "class_name": name, "command": "true"}
            if name is not None
            else {"x": 1}
        )


def test_every_step_taken_counts():
    fewer = statement({"lora": LORA.replace(steps=99)})
    assert fewer["epsilon"] < statement({"lora": LORA})["epsilon"]
    assert fewer["mechanisms"][0]["steps"] == 99


def test_stopped_before_the_first_step():
    s = statement({"lora": LORA.replace(steps=0)})
    assert s["epsilon"] == s["epsilon_rdp"] == 0.0
    assert recomputed(json.dumps(s)) == 0.0
    assert "epsilon = 0," in statement_markdown(s)


def test_without_privacy_nothing_is_claimed():
    s = statement({})
    assert s["epsilon"] is s["delta"] is s["epsilon_rdp"] is s["units"] is None
    assert s["mechanisms"] == [] and "WITHOUT" in s["warnings"][0]
    event = event_from_json(s["dp_event"])
    assert pld.PLDAccountant().compose(event).get_epsilon(DELTA) == math.inf
    text = statement_markdown(s)
    assert "**without** differential privacy" in text and "differentially private**" not in text


def test_a_stage_without_noise_makes_epsilon_infinite_in_words_too():
    s = statement({"head": HEAD, "lora": LORA.replace(noise_multiplier=0.0)})
    assert s["epsilon"] == s["epsilon_rdp"] == "infinite"
    assert any("without noise" in w for w in s["warnings"])
    json.dumps(s, allow_nan=False)
    text = statement_markdown(s)
    assert "differentially private**" not in text and "**without noise**" in text
    assert recomputed(json.dumps(s)) == math.inf


@pytest.mark.parametrize(("delta", "warned"), [(1 / 3164, True), (1e-3, True), (3.1e-4, False)])
def test_delta_not_below_one_over_units_is_warned_about(delta, warned):
    s = statement(delta=delta)
    assert any("1/units" in w for w in s["warnings"]) is warned
    assert ("1/units" in statement_markdown(s)) is warned


def test_a_public_seed_is_warned_about():
    s = statement(seed_policy="fixed-for-research")
    assert any("unprotected" in w for w in s["warnings"])
    assert "unprotected" in statement_markdown(s)


def test_stages_must_share_their_units():
    with pytest.raises(ValueError, match="units"):
        statement({"head": HEAD.replace(units=9999), "lora": LORA})


def test_words_hold_the_numbers_and_end_with_the_json():
    s = statement()
    text = statement_markdown(s)
    assert "adding or removing one **report**" in text
    assert "| lora | poisson | 0.16182 | 3 | 0.1 | 512 | 100 |" in text
    assert json.loads(text.split("```json\n")[1].split("```")[0]) == s
    assert all(item in text for item in s["not_covered"])


@pytest.mark.parametrize(
    ("epsilon", "printed"),
    [(1.00001, "1.001"), (7.9991, "8"), (8.0, "8"), (0.009991231, "0.009992"), (12.341, "12.35")],
)
def test_printed_epsilon_is_never_below_the_epsilon(epsilon, printed):
    text = statement_markdown({**statement(), "epsilon": epsilon})
    assert f"(epsilon = {printed}, " in text


def test_no_other_bound_in_words_is_below_what_it_bounds():
    s = {**statement(max_reports_per_patient=3), "epsilon": 1.0, "epsilon_rdp": 2.00001}
    text = statement_markdown({**s, "group_epsilon": {"3": 5.00001}, "swap_epsilon": 4.00001})
    for printed in ("e^epsilon = 2.719,", "is 2.001.", "| 3 | 5.001 |", "at most: 4.001."):
        assert printed in text


def test_patient_level_statement_names_the_patient():
    text = statement_markdown(statement(privacy_unit="patient"))
    assert "removing one **patient**" in text and "The unit is one report" not in text


def test_report_level_statement_says_what_several_reports_of_a_patient_get():
    s = statement()
    assert list(s["group_epsilon"]) == ["2", "5", "10", "20", "50", "100"]
    assert s["group_epsilon"]["2"] == group_epsilon([HEAD, LORA], DELTA, 2) > 2 * s["epsilon"]
    assert s["group_epsilon"]["100"] is None and s["swap_epsilon"] is None
    text = statement_markdown(s)
    assert "The unit is one report, not one patient" in text
    assert "| 100 | none is claimed |" in text
    assert "How many reports a patient has is private, and not told here" in text
    for other in (statement(privacy_unit="patient"), statement({})):
        assert other["group_epsilon"] is other["swap_epsilon"] is None


@pytest.mark.parametrize("most", [1, 3, 10])
def test_a_cap_bounds_what_any_patient_pays_but_lets_reports_displace_each_other(most):
    s = statement(max_reports_per_patient=most)
    sizes = [int(k) for k in s["group_epsilon"]]
    assert sizes == [k for k in (2, 5) if k < most] + [most]
    assert s["group_epsilon"][str(most)] == group_epsilon([HEAD, LORA], DELTA, most)
    assert s["epsilon"] < s["swap_epsilon"] < 1.1 * group_epsilon([HEAD, LORA], DELTA, 2)
    text = statement_markdown(s)
    assert f"No patient has more than {most} in training" in text and "swap" in text
    assert recomputed_epsilon(s) == s["epsilon"]


def reread(**changes):
    """The statement after a trip through JSON, with some of it changed."""
    return {**json.loads(json.dumps(statement())), **changes}


def test_recomputed_epsilon_ignores_what_is_claimed():
    assert recomputed_epsilon(reread(epsilon=0.1)) == statement()["epsilon"]
    assert recomputed_epsilon(statement({})) is None
    assert recomputed_epsilon(statement({"lora": LORA.replace(steps=0)})) == 0.0
    silent = statement({"lora": LORA.replace(noise_multiplier=0.0)})
    assert recomputed_epsilon(silent) == math.inf


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 99), ("noise_multiplier", 4.0), ("sampling_probability", 0.01)],
)
def test_a_statement_that_contradicts_itself_is_refused(field, value):
    forged = reread()
    forged["mechanisms"][1][field] = value
    with pytest.raises(ValueError, match="dp_event"):
        recomputed_epsilon(forged)


def test_a_statement_without_its_mechanisms_is_refused():
    with pytest.raises(ValueError, match="dp_event"):
        recomputed_epsilon(reread(mechanisms=[]))
    with pytest.raises(ValueError, match="no field 'units'"):
        recomputed_epsilon({k: v for k, v in reread().items() if k != "units"})
    with pytest.raises(ValueError, match="malformed"):
        recomputed_epsilon(reread(mechanisms=[7]))
