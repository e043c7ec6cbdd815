# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, without privacy: what LoRA reaches on these data.

python scripts/train.py --config configs/openi_nonprivate.py

Result: test weighted F1 0.904 (0.903 to 0.905),
mean and range over 3 runs (configs/sweep_openi.py).
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "openi_eps8")
    # Without the public start, and with the preset's own pooling: what private reports alone give.
    config.warm_start.phrasebook = None
    config.model.pooling = None
    config.centering.l2_clip_norm = 4.0
    config.head_stage.steps = 200
    config.head_stage.expected_batch_size = 3100.0
    config.head_stage.learning_rate = 0.1
    config.head_stage.schedule = "linear"
    config.train.mode = "lora"
    config.train.steps = 200
    config.train.expected_batch_size = 64.0
    config.train.learning_rate = 4e-3
    config.privacy.epsilon = None
    config.run.name = "openi_nonprivate"
    config.run.eval_every = 50
    config.run.checkpoint_every = 50
    return config
