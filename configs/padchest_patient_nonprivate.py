# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, without privacy, patients sampled as with it.

python scripts/train.py --config configs/padchest_patient_nonprivate.py

Result: test weighted F1 0.972, one run.
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "padchest_nonprivate")
    config.privacy.unit = "patient"
    config.run.name = "padchest_patient_nonprivate"
    return config
