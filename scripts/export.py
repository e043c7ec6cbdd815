# SPDX-License-Identifier: Apache-2.0
"""Takes a released adapter elsewhere.

    python scripts/export.py --adapter runs/openi_eps8/release/adapter --output merged

The same as `jaxdp export`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("export")
