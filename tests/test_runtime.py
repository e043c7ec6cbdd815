# SPDX-License-Identifier: Apache-2.0
"""What every process that trains does before it uses JAX."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import os
from jaxdp.runtime import prepare
prepare()
import jax
print(jax.device_count(), os.environ["JAX_NUM_CPU_DEVICES"], os.environ["XLA_FLAGS"])
print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
"""
FREEING = """
import ctypes
from pathlib import Path
import jax
from jaxdp import runtime
runtime.free_memory_after_compiling()
jax.jit(lambda x: x - 1)(1.0)  # loads the compiler
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(2000) for _ in range(100_000)]
for block in blocks:
    ctypes.memset(block, 1, 2000)
for block in blocks[:-1]:  # the last one keeps the heap from shrinking
    libc.free(block)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
for runtime._LONG_COMPILATION_SECONDS, step in ((60, lambda x: x + 1), (0, lambda x: x + 2)):
    before = resident()
    jax.jit(step)(1.0)
    print((before - resident()) / 200e6)
"""
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"
CORES = min(len(os.sched_getaffinity(0)), 8)


def printed(program: str, **settings: str) -> list[str]:
    """What the program prints in an environment that has these settings alone."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | {"JAX_PLATFORMS": "cpu"} | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("settings", "devices", "flags", "cache"),
    [
        ({"JAXDP_CACHE": "here"}, CORES, f"{PATIENCE}=86400", "here/compiled 0.5"),
        (
            {
                "JAX_NUM_CPU_DEVICES": "3",
                "XLA_FLAGS": "--xla_dump_to=x",
                "JAX_COMPILATION_CACHE_DIR": "here",
            },
            3,
            f"--xla_dump_to=x {PATIENCE}=86400",
            "here 1.0",
        ),
    ],
    ids=["default", "others kept"],
)
def test_each_core_is_a_device_and_programs_are_kept_unless_the_environment_says_otherwise(
    settings, devices, flags, cache
):
    first, second = printed(PROGRAM, **settings)
    assert first.split(maxsplit=2) == [str(devices), str(devices), flags] and second == cache


def test_fusions_for_a_gpu_are_not_tuned_unless_the_environment_says_so(tmp_path):
    tuner = "--xla_gpu_experimental_enable_fusion_autotuner"
    (tmp_path / "jax_cuda13_plugin.py").touch()
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    (first, _) = printed(PROGRAM, PYTHONPATH=path, XLA_FLAGS=f"{PATIENCE}=7")
    assert first.split() == [str(CORES), str(CORES), f"{PATIENCE}=7", f"{tuner}=false"]
    (first, _) = printed(PROGRAM, PYTHONPATH=path, XLA_FLAGS=f"{tuner}=true")
    assert first.split()[2:] == [f"{tuner}=true", f"{PATIENCE}=86400"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's heap")
def test_freed_memory_goes_back_to_the_system_once_a_long_compilation_ends():
    """The share of what was freed before that is given back; 0.9 leaves room for what compiling
    itself takes, 0.1 for the chance that the heap shrinks by itself."""
    short, long = map(float, printed(FREEING))
    assert short < 0.1 and long > 0.9
