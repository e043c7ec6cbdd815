# SPDX-License-Identifier: Apache-2.0
"""The study's table from run directories, and the members of the study."""

import dataclasses
import json

import pytest
from helpers_training import REPOSITORY, run_script, smoke_settings

from jaxdp.config import Config, inherit
from jaxdp.run.directory import RunError
from jaxdp.sweep.members import Place, expand, load_sweep
from jaxdp.sweep.paper import paper_table, read_results

SWEEP = str(REPOSITORY / "configs" / "sweep_paper.py")


def finished(runs, name, score, **changes):
    config = Config.from_dict(smoke_settings(runs, **changes).to_dict())
    (runs / name).mkdir(parents=True)
    (runs / name / "config.json").write_text(json.dumps(config.to_dict()))
    metrics = {"note": "", "test": {"weighted_f1": score}}
    (runs / name / "metrics.json").write_text(json.dumps(metrics))


def table(results):
    headings, rows = paper_table(results)
    assert all(len(row) == len(headings) for row in rows)
    return [dict(zip(headings, row, strict=True)) for row in rows]


def test_without_runs_the_study_is_there_and_empty():
    rows = table([])
    assert [(row["data"], row["model"]) for row in rows] == [
        (data, model)
        for data in ("MIMIC-CXR", "CT-RATE")
        for model in ("albert-base-v2", "bert-medium", "bert-small")
    ]
    cells = ("none", "10", "1", "0.1", "0.01")
    assert all(row[cell] == "-" for row in rows for cell in cells)


def test_every_run_stands_in_its_cell(tmp_path):
    patient = dict(data__source="padchest", privacy__unit="patient")
    finished(tmp_path, "a", 0.5, model__backbone="some/where/minilm/", privacy__epsilon=8.0)
    finished(tmp_path, "b", 0.6, model__backbone="minilm", privacy__epsilon=8.0)
    finished(tmp_path, "c", 0.9, model__backbone="minilm", privacy__epsilon=None)
    finished(tmp_path, "d", 0.7, model__backbone="minilm", privacy__epsilon=1.0, **patient)
    (tmp_path / "unfinished").mkdir()
    *_, padchest, openi = table(read_results(tmp_path))
    assert (padchest["data"], padchest["unit"], padchest["1"]) == (
        "PadChest",
        "patient",
        "0.700",
    )
    assert (openi["data"], openi["unit"], openi["none"]) == ("Open-I", "report", "0.900")
    assert openi["8"] == "0.550 (2)" and openi["1"] == "-"


def test_epsilons_beside_the_studys_have_a_column():
    headings, _ = paper_table([(Place("openi", "m", "lora", "report", 3.0), 0.5)])
    assert headings.index("10") < headings.index("3") < headings.index("1")


def test_a_run_that_cannot_be_read_is_named(tmp_path):
    finished(tmp_path, "a", 0.5)
    (tmp_path / "a" / "metrics.json").write_text("{")
    with pytest.raises(RunError, match="/a/metrics.json is damaged"):
        read_results(tmp_path)


def test_script_prints_and_writes_the_table(tmp_path):
    finished(tmp_path / "runs", "a", 0.5, privacy__epsilon=8.0)
    output = tmp_path / "table"
    done = run_script(
        "paper_table.py",
        f"--runs={tmp_path / 'runs'}",
        f"--markdown={output}.md",
        f"--json={output}.json",
    )
    assert done.returncode == 0, done.stderr
    *_, row = json.loads((tmp_path / "table.json").read_text())
    assert row["8"] == "0.500"
    assert "| Open-I |" in (tmp_path / "table.md").read_text() and "CT-RATE 0.78" in done.stdout
    done = run_script("paper_table.py", f"--runs={tmp_path / 'nothing'}")
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_members_of_the_study_are_valid_and_all_different():
    members = expand(load_sweep(SWEEP))
    configs = {name: member.config for name, member in members.items()}
    assert len(configs) == 2 * 3 * (5 + 4)  # plain at all epsilons and none, ours at all epsilons
    assert all(config.run.name == name for name, config in configs.items())
    assert configs["mimic_lora_bert-small_eps0.1"].privacy.epsilon == 0.1
    cells = {
        (c.data.source, c.model.backbone, c.train.mode, c.privacy.epsilon) for c in configs.values()
    }
    assert len(cells) == len(configs)
    ours = configs["ctrate_head_bert-medium_eps0.01"]
    alone = Config.from_dict(inherit(SWEEP, "ctrate_eps001").to_dict())
    assert dataclasses.replace(ours, run=alone.run) == alone
