# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, epsilon 1 per report. The base of all PadChest configs.

python scripts/train.py --config configs/padchest_eps1.py

A patient has up to 116 reports; padchest_patient_eps1.py protects patients.
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.source = "padchest"
    config.model.backbone = "minilm-l6"

    config.centering.l2_clip_norm = 4.0
    config.head_stage.steps = 100
    config.head_stage.expected_batch_size = 16384.0
    config.head_stage.learning_rate = 0.3
    config.head_stage.schedule = "linear"
    config.head_stage.l2_clip_norm = 0.03
    config.head_stage.epsilon_share = 0.3

    config.lora.layers = "last:2"
    config.train.steps = 50
    config.train.expected_batch_size = 1024.0
    config.train.learning_rate = 2e-3
    config.train.schedule = "linear"

    config.privacy.epsilon = 1.0
    # A public round number; the split has 85,948 training reports of 53,041 patients.
    config.privacy.units = 85000
    config.privacy.l2_clip_norm = 0.03

    config.run.name = "padchest_eps1"
    config.run.eval_every = 25
    return config
