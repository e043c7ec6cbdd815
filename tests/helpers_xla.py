# SPDX-License-Identifier: Apache-2.0
"""How the tests compile: four times as fast, where what a program computes is asked, not how
fast."""

import os

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
AS_USERS_DO = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
"""Compiler options of the programs whose rounding is asked for."""
LONGER = 0.02
"""Seconds of compiling from which on a program is kept for others to find."""


def compile_quickly() -> None:
    """From now on, in this process and those that it starts; before JAX is first used."""
    flags = os.environ.get("XLA_FLAGS", "")
    if QUICK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {QUICK}".strip()
