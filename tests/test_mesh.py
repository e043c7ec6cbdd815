# SPDX-License-Identifier: Apache-2.0
"""Runs on_devices.py where there are eight devices, which must be said before JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def run_on_devices(marker: str) -> None:
    options = ["-o", "addopts=", "-q", "-m", marker, "-p", "no:cacheprovider"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(TESTS / "on_devices.py")],
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


def test_eight_devices_give_what_one_gives():
    run_on_devices("not slow")


@pytest.mark.slow
def test_eight_devices_give_what_one_gives_slowly():
    run_on_devices("slow")
