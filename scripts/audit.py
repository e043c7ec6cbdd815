# SPDX-License-Identifier: Apache-2.0
"""`jaxdp audit`; --help shows its flags."""

from jaxdp.commands import run

if __name__ == "__main__":
    run("audit")
