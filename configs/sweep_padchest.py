# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, per patient: a head after the public start, and one without; three seeds each.

python scripts/sweep.py --config configs/sweep_padchest.py
python scripts/report.py --sweep runs/sweep_padchest
"""

from jaxdp.config import inherit
from jaxdp.sweep.members import Grid, Sweep


def get_sweep():
    ours, head = (inherit(__file__, "padchest_patient_eps1") for _ in range(2))
    head.warm_start.phrasebook = None
    targets = ((0.01, 0.03), (0.1, 0.3), (1.0, 0.3), (8.0, 0.3))
    return Sweep(
        name="sweep_padchest",
        grids=[
            Grid("padchest", ours, {"privacy.epsilon, train.learning_rate": targets}),
            Grid("padchest_head", head, {"privacy.epsilon": (0.1, 1.0, 8.0)}),
        ],
        seeds=3,
    )
