# SPDX-License-Identifier: Apache-2.0
"""Settings and fixtures for all tests."""

import gc
import os

import jax
import pytest
from helpers_training import write_workspace
from helpers_xla import LONGER, compile_quickly

from jaxdp.assets import cache_directory
from jaxdp.runtime import one_device_per_core

GPU_TESTS_ON = os.environ.get("JAXDP_GPU_TESTS_ON", "gpu")
"""The platform of the tests marked gpu, which are run with -m gpu, and alone."""

# As in the scripts that tests start, so that those find what was compiled here, and the reverse.
os.environ["JAX_NUM_CPU_DEVICES"] = "1"
one_device_per_core()
# A key that is used twice is an error in every test.
jax.config.update("jax_debug_key_reuse", True)


def pytest_configure(config):
    if config.option.markexpr == "gpu" and GPU_TESTS_ON != "cpu":
        # Each process of xdist would take three quarters of the memory as it starts.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    else:
        jax.config.update("jax_platforms", "cpu")
    # What is slow compiles as users do: speed is asked there, and steps are many.
    if config.option.markexpr.startswith("not slow"):
        compile_quickly()


LONGEST = ("training", "members", "mesh", "faults", "sweep", "benchmark", "warm_start", "baseline")
"""Files that a process should begin with, so that none is left alone with one at the end."""


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish():
    gc.freeze()  # what was imported stays: no garbage collection need go through it


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory):
    """Runs on the same tiny model share their compiled programs, those of scripts too; what they
    keep of public starts is not the user's, nor of another revision."""
    known, cache = cache_directory(), tmp_path_factory.mktemp("cache")
    for package in known.glob("*-*"):  # files from the package registry need no second download
        (cache / package.name).symlink_to(package)
    os.environ["JAXDP_CACHE"] = str(cache)
    shared = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": LONGER,
    }
    for name, value in shared.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture
def workspace(tmp_path):
    """A folder with NLMCXR_reports.tgz and backbone/, both tiny and synthetic."""
    return write_workspace(tmp_path)
