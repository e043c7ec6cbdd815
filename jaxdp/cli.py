# SPDX-License-Identifier: Apache-2.0
"""What the commands show as one line."""

from jaxdp.assets import AssetError
from jaxdp.data.dataset import DataError
from jaxdp.dp import LedgerError
from jaxdp.models.pretrained import WeightsError
from jaxdp.run.directory import RunError
from jaxdp.run.release_check import ReleaseError
from jaxdp.settings import ConfigError

USER_ERRORS = (
    AssetError,
    ConfigError,
    DataError,
    FloatingPointError,
    LedgerError,
    OSError,
    ReleaseError,
    RunError,
    WeightsError,
)
"""Errors that a user can act on: shown as one line, without a traceback."""
