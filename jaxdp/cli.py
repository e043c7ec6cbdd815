# SPDX-License-Identifier: Apache-2.0
"""What the scripts share: one-line errors, CPU devices and the compilation cache."""

import os
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

_PATIENCE = "xla_cpu_collective_call_terminate_timeout_seconds"
_MOST_CPU_DEVICES = 8
"""More have not been tried; the microbatches of a step should not run out."""


def fail(error: object) -> NoReturn:
    """Prints one line to stderr and ends with status 1."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


def prepare() -> None:
    """Quiets libraries, makes each core a device, and keeps compiled programs for quick starts: in
    the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says where. To be called before JAX is
    first used."""
    one_device_per_core()
    logging.set_verbosity(logging.ERROR)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
        # The step's parts compile in seconds; caching everything else only costs files.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def one_device_per_core() -> None:
    """Makes each core that this process may use a CPU device with microbatches of its own: faster
    than one device that shares every small product out over all cores. Processes that this one
    starts do the same.

    JAX_NUM_CPU_DEVICES, where it is set, says how many instead. XLA's limit on how long devices
    may wait for each other, after which it ends the process, is lifted unless XLA_FLAGS has one:
    where other work takes a core away, they wait.
    """
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    devices = os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(min(cores, _MOST_CPU_DEVICES)))
    jax.config.update("jax_num_cpu_devices", int(devices))
    flags = os.environ.get("XLA_FLAGS", "")
    if _PATIENCE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_PATIENCE}={24 * 3600}".strip()
