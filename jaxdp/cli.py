# SPDX-License-Identifier: Apache-2.0
"""What the scripts share: one-line errors and the compilation cache."""

import sys
from typing import NoReturn

import jax
from absl import logging

from jaxdp.assets import AssetError, cache_directory
from jaxdp.config import ConfigError
from jaxdp.data.dataset import DataError
from jaxdp.dp import LedgerError
from jaxdp.models.pretrained import WeightsError
from jaxdp.training.release_check import ReleaseError
from jaxdp.training.rundir import RunError

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


def fail(error: object) -> NoReturn:
    """Prints one line to stderr and ends with status 1."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


def prepare() -> None:
    """Quiets libraries, and keeps compiled programs in the user's cache folder for quick starts."""
    logging.set_verbosity(logging.ERROR)
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
    # The step's parts compile in seconds; caching everything else only costs files.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
