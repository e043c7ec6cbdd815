# SPDX-License-Identifier: Apache-2.0
"""Labels new reports with a finished run, or with its release/ directory alone.

    python scripts/predict.py --run runs/openi_eps8 --input new.csv --output labels.csv

The same as `jaxdp predict`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("predict")
