# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, epsilon 1 per patient: one random report of each sampled patient per step.

python scripts/train.py --config configs/padchest_patient_eps1.py

Result: not run whole with this recipe; the one before it had 0.917 (0.916 to 0.918) on test, and
a trial of this one 0.945 (docs/results.md).
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "padchest_eps1")
    config.privacy.unit = "patient"
    config.privacy.units = 53_000
    config.run.name = "padchest_patient_eps1"
    return config
