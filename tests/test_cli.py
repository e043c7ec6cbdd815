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
print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
"""
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"
CORES = min(len(os.sched_getaffinity(0)), 8)


def prepared(**settings: str) -> list[str]:
    """What the program prints in an environment that has these settings alone."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=clean | {"JAX_PLATFORMS": "cpu"} | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


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
    assert prepared(**settings)[0].split(maxsplit=2) == [str(devices), str(devices), flags]


def test_compiled_programs_are_kept_in_the_cache_folder_or_where_the_environment_says(tmp_path):
    assert prepared(JAXDP_CACHE=str(tmp_path))[1] == f"{tmp_path / 'compiled'} 0.5"
    assert prepared(JAX_COMPILATION_CACHE_DIR=str(tmp_path))[1] == f"{tmp_path} 1.0"
