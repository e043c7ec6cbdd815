# SPDX-License-Identifier: Apache-2.0
"""Epsilon and noise of a DP training run, before it starts; or a statement checked after it.

    python scripts/account.py --epsilon 1,8 --units 50232 --batch 1024 --steps 1000

The same as `jaxdp account`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("account")
