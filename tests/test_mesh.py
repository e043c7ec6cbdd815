# SPDX-License-Identifier: Apache-2.0
"""Runs on_devices.py where there are eight devices, which must be said before JAX starts."""

from pathlib import Path

import pytest
from helpers_training import run_script

PROGRAM = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"


def run_on_devices(tmp_path, marker: str) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ["-o", "addopts=", "-q", "-m", marker, "-p", "no:cacheprovider"]
    file = Path(__file__).with_name("on_devices.py")
    # pytest warns of a plugin that the fork has imported already.
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    result = run_script(tmp_path / "program.py", *options, file, **plugins)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


def test_eight_devices_give_what_one_gives(tmp_path):
    run_on_devices(tmp_path, "not slow")


@pytest.mark.slow
def test_eight_devices_give_what_one_gives_slowly(tmp_path):
    run_on_devices(tmp_path, "slow")
