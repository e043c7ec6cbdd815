# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, a head alone on frozen features without a public start, epsilon 8 per report.

python scripts/train.py --config configs/openi_head_eps8.py

Result: test weighted F1 0.809 (0.801 to 0.815),
mean and range over 3 seeds; 1:21 min on 2 CPU cores.
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "openi_eps8")
    config.train.recipe = None
    # Pooled features have norms of about 4.
    config.centering.l2_clip_norm = 4.0
    config.train.mode = "head"
    config.train.steps = 200
    config.train.expected_batch_size = 3100.0
    config.train.learning_rate = 0.3
    config.train.schedule = "linear"
    config.privacy.l2_clip_norm = 0.03
    config.run.name = "openi_head_eps8"
    return config
