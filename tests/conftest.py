# SPDX-License-Identifier: Apache-2.0
"""Settings and fixtures for all tests."""

import jax
import pytest
from helpers_training import write_backbone, write_collection

jax.config.update("jax_platforms", "cpu")
# A key that is used twice is an error in every test.
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def workspace(tmp_path):
    """A folder with NLMCXR_reports.tgz and backbone/, both tiny and synthetic."""
    write_collection(tmp_path / "NLMCXR_reports.tgz")
    write_backbone(tmp_path / "backbone")
    return tmp_path
