# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM: four epsilons with a phrasebook, three without, three seeds each; and none.

python scripts/sweep.py --config configs/sweep_openi.py
python scripts/report.py --sweep runs/sweep_openi
"""

from jaxdp.config import inherit
from jaxdp.sweep.members import Grid, Sweep


def get_sweep():
    book, labels, nonprivate = (
        inherit(__file__, name) for name in ("openi_eps8", "openi_labels_eps8", "openi_nonprivate")
    )
    return Sweep(
        name="sweep_openi",
        grids=[
            Grid("openi", book, {"privacy.epsilon": (0.01, 0.1, 1.0, 8.0)}),
            Grid("openi_labels", labels, {"privacy.epsilon": (0.1, 1.0, 8.0)}),
            Grid("openi_nonprivate", nonprivate, seeds=1),  # nothing is random but the sample
        ],
        seeds=3,
    )
