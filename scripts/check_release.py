# SPDX-License-Identifier: Apache-2.0
"""`jaxdp check-release`; --help shows its flags."""

from jaxdp.commands import run

if __name__ == "__main__":
    run("check-release")
