# SPDX-License-Identifier: Apache-2.0
"""MIMIC-CXR, BERT-medium, without privacy: LoRA as the study describes it.

python scripts/train.py --config configs/mimic_nonprivate.py --config.data.root=/data/mimic-cxr
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "mimic_plain_eps1")
    config.privacy.epsilon = None
    config.train.expected_batch_size = 64.0
    config.train.steps = 10000
    config.run.name = "mimic_nonprivate"
    return config
