# SPDX-License-Identifier: Apache-2.0
"""Checks that a release bundle holds what may be shared, and is what it claims to be.

    python scripts/check_release.py runs/openi_eps8/release

The same as `jaxdp check-release`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("check-release")
