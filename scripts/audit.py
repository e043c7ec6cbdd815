# SPDX-License-Identifier: Apache-2.0
"""Attacks our own training with canaries, and proves lower bounds on its epsilon.

    python scripts/audit.py --config configs/audit_openi.py

The same as `jaxdp audit`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("audit")
