# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, without privacy: what LoRA reaches on these data from the same public start.

python scripts/train.py --config configs/padchest_nonprivate.py
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "padchest_eps1")
    config.privacy.epsilon = None
    config.train.steps = 1000
    config.train.expected_batch_size = 128.0
    config.train.learning_rate = 2e-3
    config.train.schedule = "linear"
    config.run.name = "padchest_nonprivate"
    return config
