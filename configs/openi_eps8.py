# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, epsilon 8 at delta 1e-5 per report.

python scripts/train.py --config configs/openi_eps8.py
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.source = "openi"
    config.model.backbone = "minilm-l6"

    config.centering.l2_clip_norm = 4.0
    config.head_stage.steps = 200
    config.head_stage.expected_batch_size = 3100.0
    config.head_stage.learning_rate = 0.3
    config.head_stage.schedule = "linear"
    config.head_stage.l2_clip_norm = 0.03
    config.head_stage.epsilon_share = 0.8

    config.lora.layers = "last:2"
    config.train.steps = 60
    config.train.expected_batch_size = 1024.0
    config.train.learning_rate = 1e-3
    config.train.schedule = "linear"

    config.privacy.epsilon = 8.0
    config.privacy.units = 3100
    config.privacy.l2_clip_norm = 0.03

    config.run.name = "openi_eps8"
    return config
