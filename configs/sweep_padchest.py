# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, per patient: four epsilons with a phrasebook; three seeds each.

python scripts/sweep.py --config configs/sweep_padchest.py
python scripts/report.py --sweep runs/sweep_padchest
"""

from jaxdp.config import inherit
from jaxdp.sweep.members import Grid, Sweep


def get_sweep():
    base = inherit(__file__, "padchest_patient_eps1")
    return Sweep(
        name="sweep_padchest",
        grids=[Grid("padchest", base, {"privacy.epsilon": (0.01, 0.1, 1.0, 8.0)})],
        seeds=3,
    )
