# SPDX-License-Identifier: Apache-2.0
"""What every script does before it uses JAX."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
from jaxdp.cli import prepare
prepare()
import jax
print(jax.device_count(), os.environ["JAX_NUM_CPU_DEVICES"], os.environ["XLA_FLAGS"])
"""
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"
CORES = min(len(os.sched_getaffinity(0)), 8)


@pytest.mark.parametrize(
    ("settings", "devices", "flags"),
    [
        ({}, CORES, f"{PATIENCE}=86400"),
        (
            {"JAX_NUM_CPU_DEVICES": "3", "XLA_FLAGS": "--xla_dump_to=x"},
            3,
            f"--xla_dump_to=x {PATIENCE}=86400",
        ),
        ({"XLA_FLAGS": f"{PATIENCE}=7"}, CORES, f"{PATIENCE}=7"),
    ],
    ids=["default", "others kept", "own limit"],
)
def test_each_core_is_a_device_unless_the_environment_says_otherwise(settings, devices, flags):
    clean = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | {"JAX_PLATFORMS": "cpu"} | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split(maxsplit=2) == [str(devices), str(devices), flags + "\n"], done.stderr
