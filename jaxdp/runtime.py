# SPDX-License-Identifier: Apache-2.0
"""How a process that trains uses its machine: devices, compiled programs, memory."""

import contextlib
import ctypes
import functools
import importlib.util
import os
import sys

import jax
from absl import logging

from .assets import cache_directory

_PATIENCE = "xla_cpu_collective_call_terminate_timeout_seconds"
_TUNER = "xla_gpu_experimental_enable_fusion_autotuner"
_MOST_CPU_DEVICES = 8  # more have not been tried; the microbatches of a step should not run out
COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event: a program is compiled, or was found, after so many seconds."""
_LONG_COMPILATION_SECONDS = 0.5
"""Shorter ones leave nothing worth keeping, and nothing worth clearing away."""


@functools.cache  # once a process
def prepare() -> None:
    """Quiets libraries, makes each core a device, frees what compiling leaves behind, and keeps
    compiled programs for quick starts: in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR
    says where. To be called before JAX is first used; afterwards its devices stay what they are."""
    with contextlib.suppress(RuntimeError):
        one_device_per_core()
    free_memory_after_compiling()
    logging.set_verbosity(logging.ERROR)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
        seconds = "jax_persistent_cache_min_compile_time_secs"
        jax.config.update(seconds, _LONG_COMPILATION_SECONDS)


def one_device_per_core() -> None:
    """Makes each core that this process may use a CPU device with microbatches of its own: faster
    than one device that shares every small product out over all cores. Processes that
    this one starts do the same.

    JAX_NUM_CPU_DEVICES, where it is set, says how many instead. XLA's limit on how long devices
    may wait for each other, after which it ends the process, is lifted unless XLA_FLAGS has one:
    where other work takes a core away, they wait. For GPUs, which wait for the tuning of every
    fusion when a program is compiled, that is off, unless XLA_FLAGS says otherwise.
    """
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    devices = os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(min(cores, _MOST_CPU_DEVICES)))
    jax.config.update("jax_num_cpu_devices", int(devices))
    wanted = {_PATIENCE: str(24 * 3600)}
    if importlib.util.find_spec("jax_cuda13_plugin"):
        wanted[_TUNER] = "false"
    flags = os.environ.get("XLA_FLAGS", "")
    added = [f"--{name}={value}" for name, value in wanted.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *added]).strip()


def free_memory_after_compiling() -> None:
    """From now on what a long compilation has freed goes back to the system before the program
    runs. glibc would keep it, a gigabyte for a step of twelve widths, and grow the arenas that the
    program's own buffers come from beside it: the more, the longer it runs. Other C libraries are
    left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def compiled(event: str, seconds: float, **_) -> None:
        if event == COMPILED and seconds >= _LONG_COMPILATION_SECONDS:
            trim(0)

    if trim:
        jax.monitoring.register_event_duration_secs_listener(compiled)
