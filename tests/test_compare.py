# SPDX-License-Identifier: Apache-2.0
"""Comparing whole runs: statistics, the page, and the script."""

import dataclasses
import json

import pytest
from helpers_data import answers
from helpers_models import IGNORE_PEFT
from helpers_training import run_script, smoke_config, smoke_settings

from jaxdp.commands.compare import at_epsilons
from jaxdp.config import default_config
from jaxdp.peers.comparison import compare_runs, run_of, summarise
from jaxdp.peers.job import SIDES, Job
from jaxdp.peers.start import find_jobs
from jaxdp.report.comparison import write_page
from jaxdp.run.directory import RunError

pytestmark = IGNORE_PEFT


def outcome(seconds: float) -> dict:
    return {
        "setup_seconds": 1.0,
        "first_step_seconds": 2.0,
        "later_seconds": seconds,
        "reports": [10, 20, 30],
        "peak_memory": 10**9,
        "epsilon": {"pld": 1.0},
        "settings": {"sampling": "Poisson", "padding": "<fixed>"},
    }


@pytest.fixture
def runs(workspace):
    """Of two seeds, each on both sides."""
    labels, good = answers()
    made = []
    for seed in (0, 1):
        config = smoke_config(workspace, run__name="smoke", run__research_seed=seed)
        job = Job(config, "", "cls", tuple("abcd"), {"main stage": {}}, None, None, None, None)
        job = dataclasses.replace(job, test=type("Reports", (), {"labels": labels}))
        outcomes = (outcome(5.0), good), (outcome(10.0), 1 - good)
        made += [run_of(job, side, *each) for side, each in zip(SIDES, outcomes, strict=True)]
    return made


def test_summary_and_page(runs, tmp_path):
    (row,) = summarise(runs)
    assert row["recipe"] == "smoke" and row["epsilon"] == 0.5 and row["seeds"] == [0, 1]
    assert row["jaxdp"]["reports_per_second"] == 50 / 5.0
    assert row["PyTorch"]["seconds"] == 1 + 2 + 10
    gap, low, high = row["difference"]["over_reports"]
    assert gap == pytest.approx(row["jaxdp"]["weighted_f1"][0] - row["PyTorch"]["weighted_f1"][0])
    assert 0 < low < gap < high and row["difference"]["over_seeds"] == pytest.approx([gap] * 3)
    (single,) = summarise(runs[:2])
    assert single["difference"]["over_seeds"] == [pytest.approx(gap), None, None]

    result = {
        "command": "python x",
        "summary": [row],
        "runs": [run.row for run in runs],
        "settings": {"smoke": {run.row["side"]: run.row["settings"] for run in runs[:2]}},
    }
    result = json.loads(json.dumps(result, allow_nan=False))
    write_page(tmp_path / "page.html", {"runs": result})
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2 and "&lt;fixed&gt;" in page and "<fixed>" not in page
    assert "src=" not in page and 'href="http' not in page  # one file, nothing fetched


def flags(workspace, **changes) -> list[str]:
    settings = smoke_settings(workspace, **changes)
    config = workspace / "configuration.py"
    config.write_text(
        "import json\nfrom jaxdp.config import default_config\n"
        "def get_config():\n    config = default_config()\n"
        f"    config.update(json.loads({json.dumps(settings.to_dict())!r}))\n    return config\n"
    )
    return [f"--config={config}", f"--output={workspace / 'out'}"]


@pytest.mark.slow
def test_help_and_wrong_input_are_plain(workspace):
    assert run_script("compare_pytorch.py", "--help").stdout.count("--level") >= 1
    failed = run_script("compare_pytorch.py", *flags(workspace, privacy__epsilon=None))
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines() == [
        "error: config.privacy.epsilon must be a number: gradients are clipped here"
    ]


def test_a_recipe_chooses_for_each_epsilon():
    values = default_config().to_dict()
    values["train"]["recipe"], values["privacy"]["units"] = "auto", 3100
    rates = [c.train.learning_rate for c in at_epsilons(values, [1.0, 8.0])]
    assert rates == [0.05, 0.1]
    (as_it_is,) = at_epsilons(values, [])
    assert as_it_is.privacy.epsilon == values["privacy"]["epsilon"]


@pytest.mark.slow
def test_finished_runs_are_kept(workspace):
    config = smoke_config(workspace, run__name="a run", privacy__epsilon=1.0)
    options = {"method": "hooks"}

    def compared(config) -> tuple[list[dict], list[str]]:
        said = []
        jobs = find_jobs([config], 2, workspace / "private", said.append)
        return compare_runs(jobs, options, said.append)["runs"], said

    runs, said = compared(config)
    assert [(run["seed"], run["side"]) for run in runs] == [
        (s, side) for s in (0, 1) for side in SIDES
    ]
    assert sum("start made" in line for line in said) == 2
    for run in runs:
        assert len(run["reports"]) == config.train.steps and run["target_epsilon"] == 1.0
        assert all(cost == pytest.approx(1.0, abs=0.3) for cost in run["epsilon"].values())
        assert min(run["setup_seconds"], run["first_step_seconds"], run["later_seconds"]) > 0
    again, said = compared(config)
    assert again == runs and not any("start made" in line for line in said)
    job = workspace / "private" / "a_run_epsilon_1.0_seed_1"
    kept = {path.parent.name for path in job.glob("*/outcome.json")}
    assert kept == {"jaxdp", "pytorch_hooks"}
    other = dataclasses.replace(config.train, learning_rate=0.5)
    with pytest.raises(RunError, match="holds a run of other settings"):
        compared(dataclasses.replace(config, train=other))
