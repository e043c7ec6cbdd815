# SPDX-License-Identifier: Apache-2.0
"""Prints the study's table, data x model x epsilon, with the weighted F1 of finished runs.

    python scripts/paper_table.py --runs runs

The same as `jaxdp paper`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("paper")
