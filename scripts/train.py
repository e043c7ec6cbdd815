# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a report classifier with differential privacy.

    python scripts/train.py --config configs/openi_eps8.py

The same as `jaxdp train`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("train")
