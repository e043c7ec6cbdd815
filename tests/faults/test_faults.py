# SPDX-License-Identifier: Apache-2.0
"""The faults of run.py: a few of them, and all of them at length. Both are slow tests."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest


def outcomes(tmp_path, *arguments: str) -> dict[str, dict]:
    """Kind of fault -> its outcome. In a process of its own: JAX must not have started to fork."""
    report = tmp_path / "outcomes.json"
    command = [sys.executable, str(Path(__file__).with_name("run.py")), *arguments]
    command += [f"--json={report}", f"--compiled={jax.config.jax_compilation_cache_dir}"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(report.read_text()) if report.exists() else {}
    assert done.returncode == 0 and found, done.stdout + done.stderr
    return found


@pytest.mark.slow
def test_killed_and_damaged_runs_end_as_if_nothing_had_happened(tmp_path):
    few = ("--kills=2", "--damages=1", "--secure_noise")
    found = outcomes(tmp_path, "kills", "damaged_checkpoints", *few)
    assert found.keys() == {"kills", "damaged_checkpoints"}


@pytest.mark.slow
def test_no_fault_shows_in_what_is_released(tmp_path):
    assert len(outcomes(tmp_path)) == 8
