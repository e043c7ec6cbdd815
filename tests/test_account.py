# SPDX-License-Identifier: Apache-2.0
"""scripts/account.py from the outside: tables, JSON, statements, and one-line errors."""

import json
from functools import partial

import pytest
from helpers_training import run_script

from jaxdp.dp import Ledger, SubsampledGaussian, epsilon_pld, privacy_statement

account = partial(run_script, "account.py")
RUN = ["--units", "50000", "--batch", "1000", "--steps", "1000"]


def test_noise_for_several_epsilons_and_back(tmp_path):
    there, back = tmp_path / "there.json", tmp_path / "back.json"
    result = account("--epsilon", "0.1,1", *RUN, "--json", there)
    assert result.returncode == 0, result.stderr
    rows = json.loads(there.read_text())["rows"]
    # dp-accounting's own calibration gives 19.5227 and 2.51202 (PLD), 21.5664 and 2.71351 (RDP).
    assert [row["noise_multiplier"] for row in rows] == pytest.approx([19.5227, 2.51202], rel=5e-3)
    found = [row["noise_multiplier_rdp"] for row in rows]
    assert found == pytest.approx([21.5664, 2.71351], rel=1e-3)
    assert all(0.995 * row["target"] <= row["epsilon"] <= row["target"] for row in rows)
    assert f"{rows[1]['noise_multiplier']:.6g}" in result.stdout

    noise = ",".join(str(row["noise_multiplier"]) for row in rows)
    assert account("--noise_multiplier", noise, *RUN, "--json", back).returncode == 0
    again = [row["epsilon"] for row in json.loads(back.read_text())["rows"]]
    assert again == [row["epsilon"] for row in rows]


def test_nothing_is_asked_for_that_the_arithmetic_does_not_use(tmp_path):
    rows = []
    for sampling in (["--units", 50, "--batch", 5], ["--sampling_probability", 0.1]):
        out = tmp_path / "out.json"
        result = account("--noise_multiplier", 3, "--steps", 10, *sampling, "--json", out)
        assert result.returncode == 0, result.stderr
        rows.append(json.loads(out.read_text())["rows"])
    assert rows[0] == rows[1]


def test_no_noise_is_infinite_also_in_json_and_a_large_delta_is_warned_about(tmp_path):
    out = tmp_path / "out.json"
    result = account("--noise_multiplier", "0", *RUN, "--delta", "1e-3", "--json", out)
    assert result.returncode == 0 and "1 / units" in result.stdout
    assert json.loads(out.read_text())["rows"][0]["epsilon"] == "infinite"
    assert "Infinity" not in out.read_text()


@pytest.fixture
def statement():
    lora = SubsampledGaussian(
        units=5000, expected_batch_size=500, steps=100, l2_clip_norm=0.1, noise_multiplier=3.0
    )
    return privacy_statement(
        {"lora": lora},
        delta=1e-5,
        privacy_unit="report",
        seed_policy="os-entropy",
        label_origin="none",
    )


def test_a_true_statement_agrees(tmp_path, statement):
    path = tmp_path / "privacy.json"
    path.write_text(json.dumps(statement))
    result = account("--statement", path)
    assert result.returncode == 0 and "agrees" in result.stdout


def test_a_false_statement_fails(tmp_path, statement):
    path = tmp_path / "privacy.json"
    path.write_text(json.dumps({**statement, "epsilon": statement["epsilon"] / 2}))
    result = account("--statement", path)
    assert result.returncode == 1 and "claims epsilon" in result.stderr


def test_a_ledger_is_added_up(tmp_path):
    ledger, out = Ledger(tmp_path / "ledger.jsonl"), tmp_path / "out.json"
    lora = SubsampledGaussian(5000, 5000, 100, 0.1, 40.0)
    for run in ("one", "two"):
        ledger.plan("data", run, {"lora": lora})
    assert account("--ledger", ledger.path, "--json", out).returncode == 0
    (row,) = json.loads(out.read_text())["data"]
    assert row == {"data": "data", "runs": 2, "epsilon": epsilon_pld([lora, lora], 1e-5)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "0", *RUN], "epsilon must be in"),
        (["--epsilon", "1,x", *RUN], "numbers separated by commas"),
        (["--epsilon", "", *RUN], "must name at least one number"),
        (["--epsilon", "1", "--units", "10", "--batch", "11", "--steps", "1"], "at most 1"),
        (["--epsilon", "1"], "--units is needed"),
        (["--epsilon", "1", "--sampling_probability", "0.1"], "--steps is needed"),
        (["--epsilon", "1", *RUN, "--sampling_probability", "0.1"], "--sampling_probability alone"),
        ([], "give one of"),
        (["--statement", "no-such-file.json"], "no-such-file.json does not exist"),
        (["--ledger", "no-such-file.jsonl"], "no such ledger"),
    ],
)
def test_errors_are_one_line(arguments, message):
    result = account(*arguments)
    assert result.returncode == 1
    assert message in result.stderr and result.stderr.count("\n") == 1
