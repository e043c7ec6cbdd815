# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, epsilon 1 per patient, without a phrasebook: from the labels' Spanish names.

python scripts/train.py --config configs/padchest_patient_labels_eps1.py

Result: test weighted F1 0.924, one run (docs/results.md).
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "padchest_patient_labels_eps8")
    config.privacy.epsilon = 1.0
    config.run.name = "padchest_patient_labels_eps1"
    return config
