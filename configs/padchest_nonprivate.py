# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, without privacy: what LoRA reaches on these data.

python scripts/train.py --config configs/padchest_nonprivate.py
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "padchest_eps1")
    config.head_stage.learning_rate = 0.1
    config.train.steps = 400
    config.train.expected_batch_size = 256.0
    config.train.learning_rate = 2e-3
    config.privacy.epsilon = None
    config.run.name = "padchest_nonprivate"
    return config
