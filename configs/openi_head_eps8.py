# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, a head alone on frozen features, epsilon 8 at delta 1e-5 per report.

python scripts/train.py --config configs/openi_head_eps8.py

Result: test weighted F1 0.809 (0.801 to 0.815),
mean and range over 3 seeds; 1:21 min:s on 2 CPU cores.
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "openi_eps8")
    # Without the public start, and with the preset's own pooling: what private reports alone give.
    config.warm_start.phrasebook = None
    config.model.pooling = None
    config.centering.l2_clip_norm = 4.0
    config.train.learning_rate = 0.3
    config.privacy.epsilon = 8.0
    config.run.name = "openi_head_eps8"
    config.run.eval_every = 50
    config.run.checkpoint_every = 50
    return config
