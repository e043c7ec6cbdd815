# SPDX-License-Identifier: Apache-2.0
"""Shows what a configuration's data are: counts, lengths and labels, never a report.

    python scripts/inspect_data.py --config configs/openi_eps8.py

The same as `jaxdp inspect`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("inspect")
