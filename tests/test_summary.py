# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from helpers_data import CANARY, make_dataset, openi_xml, write_openi, write_table
from helpers_training import REPOSITORY, run_script

from jaxdp.data.summary import summarize


def test_counts():
    data = make_dataset(
        patients="aaabcd",
        splits=["train"] * 5 + ["test"],
        labels=np.array([[1, 0], [1, -1], [0, -1], [0, 0], [0, 0], [1, 1]], np.int8),
        labelled_by=np.array(["physician", "model", "model", "model", "model", "physician"]),
    )
    summary = summarize(data, np.array([5, 9, 10, 11, 30, 4]), max_length=10)
    assert list(summary["splits"]) == ["train", "test"]
    assert summary["splits"]["train"] == {
        "reports": 5,
        "patients": 3,
        "reports_per_patient": {"median": 1, "largest": 3},
        "tokens": {"median": 10.0, "p95": pytest.approx(26.2), "longest": 30, "reports_cut": 2},
        "labels": {
            "even": {"positive": 2, "negative": 3, "unknown": 0},
            "odd": {"positive": 0, "negative": 3, "unknown": 2},
        },
        "labelled_by": {"model": 4, "physician": 1},
    }
    assert "label 'odd' is never positive in the train split" in summary["warnings"]
    assert CANARY not in json.dumps(summary)


def inspect(workspace, *arguments, config=REPOSITORY / "configs" / "smoke.py"):
    flags = [f"--config.data.root={workspace}", f"--config.model.backbone={workspace}/backbone"]
    return run_script("inspect_data.py", "--config", config, *flags, *arguments)


def test_script_prints_and_saves_counts_but_no_report(workspace):
    members = {
        f"{CANARY}{i}.xml": openi_xml(CANARY, f"{CANARY} {i}", patient=f"{CANARY}{i}")
        for i in range(60)
    }
    write_openi(workspace / "NLMCXR_reports.tgz", members)
    out = workspace / "out"
    result = inspect(
        workspace, "--config.data.labels=('normal',)", "--output", out, "--json", out / "s.json"
    )
    assert result.returncode == 0, result.stderr
    assert "60 reports" in result.stdout and "normal" in result.stdout
    assert CANARY not in result.stdout + result.stderr + (out / "s.json").read_text()
    assert json.loads((out / "s.json").read_text())["reports"] == 60
    for name in ("lengths.png", "labels.png"):
        content = (out / name).read_bytes()
        assert content.startswith(b"\x89PNG") and CANARY.encode() not in content


def test_script_refuses_in_one_line(workspace):
    result = inspect(workspace, f"--config.data.root={workspace}/absent")
    assert result.returncode == 1 and result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_script_asks_for_nothing_that_only_training_needs(workspace):
    config = workspace / "mine.py"
    config.write_text("from jaxdp.config import default_config as get_config\n")
    rows = [[f"{CANARY} {i}", i % 2] for i in range(40)]
    table = write_table(workspace / "mine.csv", ["text", "normal"], rows)
    settings = (f"root={table}", "source=table", "labels=('normal',)")
    flags = [f"--config.data.{setting}" for setting in settings]
    # As it is before the units are known: neither them, nor a batch that is below them.
    unused = ("--config.train.expected_batch_size=-1", "--config.model.label_dimensions=8")
    result = inspect(workspace, *flags, *unused, config=config)
    assert result.returncode == 0, result.stderr
    assert "40 reports" in result.stdout
    result = inspect(workspace, *flags, "--config.data.max_length=2", config=config)
    assert result.stderr == "error: config.data.max_length must be at least 3, not 2\n"
