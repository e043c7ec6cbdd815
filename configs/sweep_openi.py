# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM: three epsilons and none, three seeds each, all by the recipe of openi_eps8.

python scripts/sweep.py --config configs/sweep_openi.py
python scripts/report.py --sweep runs/sweep_openi
"""

from jaxdp.config import inherit
from jaxdp.sweep.members import Grid, Sweep


def get_sweep():
    base = inherit(__file__, "openi_eps8")
    return Sweep(
        name="sweep_openi",
        grids=[Grid("openi", base, {"privacy.epsilon": (0.1, 1.0, 8.0, None)})],
        seeds=3,
    )
