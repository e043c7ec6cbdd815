# SPDX-License-Identifier: Apache-2.0
"""Settings and fixtures for all tests."""

import jax
import pytest
from helpers_training import write_backbone, write_collection

jax.config.update("jax_platforms", "cpu")
# A key that is used twice is an error in every test.
jax.config.update("jax_debug_key_reuse", True)


LONGEST = ("training", "members", "mesh", "faults", "sweep", "benchmark", "warm_start", "baseline")
"""Files that a process should begin with, so that none is left alone with one at the end."""


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Runs on the same tiny model share their compiled programs."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture
def workspace(tmp_path):
    """A folder with NLMCXR_reports.tgz and backbone/, both tiny and synthetic."""
    write_collection(tmp_path / "NLMCXR_reports.tgz")
    write_backbone(tmp_path / "backbone")
    return tmp_path
