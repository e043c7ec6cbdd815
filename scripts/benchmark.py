# SPDX-License-Identifier: Apache-2.0
"""Throughput side by side with peers, on this machine's CPU or GPU: one table, one JSON.

    python scripts/benchmark.py --quick

The same as `jaxdp benchmark`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("benchmark")
