# SPDX-License-Identifier: Apache-2.0
"""Says what a run's compiled programs cost, on this machine or for a chip that is not here.

    python scripts/programs.py --config configs/mimic_plain_eps1.py --chip v5e

The same as `jaxdp programs`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("programs")
