# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, epsilon 1 per report.

python scripts/train.py --config configs/padchest_eps1.py

Result: not run. A patient has up to 116 reports; see padchest_patient_eps1.py for patients.
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.source = "padchest"
    config.model.backbone = "minilm-l6"

    config.centering.l2_clip_norm = 4.0
    config.head_stage.steps = 200
    config.head_stage.expected_batch_size = 16384.0
    config.head_stage.learning_rate = 0.3
    config.head_stage.schedule = "linear"
    config.head_stage.l2_clip_norm = 0.03
    config.head_stage.epsilon_share = 0.5

    config.lora.layers = "last:2"
    config.train.steps = 150
    config.train.expected_batch_size = 2048.0
    config.train.learning_rate = 1e-3
    config.train.schedule = "linear"

    config.privacy.epsilon = 1.0
    config.privacy.units = 85000
    config.privacy.l2_clip_norm = 0.03

    config.run.name = "padchest_eps1"
    return config
