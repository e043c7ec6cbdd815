# SPDX-License-Identifier: Apache-2.0
"""CT-RATE, BERT-medium, without privacy: LoRA as the study describes it.

python scripts/train.py --config configs/ctrate_nonprivate.py --config.data.root=/data/ct-rate
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "ctrate_plain_eps1")
    config.privacy.epsilon = None
    config.train.expected_batch_size = 64.0
    config.train.steps = 10000
    config.run.name = "ctrate_nonprivate"
    return config
