# SPDX-License-Identifier: Apache-2.0
"""All parts of a private run in seconds, with a useless result: a check of an installation.

python scripts/train.py --config configs/smoke.py
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.text = "impression"
    config.data.max_length = 16
    config.centering.l2_clip_norm = 4.0
    config.head_stage.steps = 4
    config.head_stage.expected_batch_size = 24.0
    config.head_stage.epsilon_share = 0.5
    config.lora.layers = "last:1"
    config.train.steps = 6
    config.train.expected_batch_size = 16.0
    config.train.microbatch_tokens = 128
    config.privacy.epsilon = 0.5
    config.privacy.delta = 1e-3
    config.privacy.units = 96
    config.run.name = "smoke"
    config.run.checkpoint_every = 2
    config.run.eval_every = 3
    return config
