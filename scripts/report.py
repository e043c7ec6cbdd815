# SPDX-License-Identifier: Apache-2.0
"""Makes a sweep's page and figures, from whatever of it is finished.

    python scripts/report.py --sweep runs/sweep_openi

The same as `jaxdp report`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("report")
