# SPDX-License-Identifier: Apache-2.0
"""MIMIC-CXR, BERT-medium, epsilon 10 per report.

python scripts/train.py --config configs/mimic_eps10.py --config.data.root=/data/mimic-cxr
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "mimic_eps1")
    config.privacy.epsilon = 10.0
    config.run.name = "mimic_eps10"
    return config
