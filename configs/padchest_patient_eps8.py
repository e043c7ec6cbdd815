# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, epsilon 8 per patient: one random report of each sampled patient per step.

python scripts/train.py --config configs/padchest_patient_eps8.py

Result: test weighted F1 0.960 (0.960 to 0.961), mean and range over 3 runs
(configs/sweep_padchest.py).
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "padchest_patient_eps1")
    config.privacy.epsilon = 8.0
    config.run.name = "padchest_patient_eps8"
    return config
