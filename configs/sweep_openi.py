# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM: four epsilons by the recipe of openi_eps8, none by its own; three seeds each.

python scripts/sweep.py --config configs/sweep_openi.py
python scripts/report.py --sweep runs/sweep_openi
"""

from jaxdp.config import inherit
from jaxdp.sweep.members import Grid, Sweep


def get_sweep():
    private, nonprivate = (inherit(__file__, name) for name in ("openi_eps8", "openi_nonprivate"))
    # The less 3,100 reports can tell, the less far from its public start a head should move.
    targets = ((0.01, 0.003), (0.1, 0.01), (1.0, 0.1), (8.0, 0.1))
    return Sweep(
        name="sweep_openi",
        grids=[
            Grid("openi", private, {"privacy.epsilon, train.learning_rate": targets}),
            Grid("openi_nonprivate", nonprivate),
        ],
        seeds=3,
    )
