# SPDX-License-Identifier: Apache-2.0
"""CT-RATE, BERT-medium, epsilon 0.01 per report.

python scripts/train.py --config configs/ctrate_eps001.py --config.data.root=/data/ct-rate
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "ctrate_eps1")
    config.privacy.epsilon = 0.01
    config.run.name = "ctrate_eps001"
    return config
