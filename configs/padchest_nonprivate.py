# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, without privacy: what LoRA reaches on these data.

python scripts/train.py --config configs/padchest_nonprivate.py
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "padchest_eps1")
    # Without the public start, and with the preset's own pooling: what private reports alone give.
    config.warm_start.phrasebook = None
    config.model.pooling = None
    config.centering.l2_clip_norm = 4.0
    config.head_stage.steps = 100
    config.head_stage.expected_batch_size = 16384.0
    config.head_stage.learning_rate = 0.1
    config.head_stage.schedule = "linear"
    config.train.mode = "lora"
    config.train.steps = 400
    config.train.expected_batch_size = 256.0
    config.train.learning_rate = 2e-3
    config.privacy.epsilon = None
    config.run.name = "padchest_nonprivate"
    return config
