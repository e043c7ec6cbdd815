# SPDX-License-Identifier: Apache-2.0
"""Trains all members of a sweep, and says what they cost together.

    python scripts/sweep.py --config configs/sweep_openi.py

The same as `jaxdp sweep`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("sweep")
