# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, epsilon 8: plain DP-LoRA as the study describes it, to be compared with.

python scripts/train.py --config configs/openi_plain_eps8.py

Result: test weighted F1 0.518 (one run); validation chose the rate among 0.003, 0.01 and 0.03.
With 36 steps of 256 reports it is 0.233: large batches are what the accountant favours.
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "openi_eps8")
    # Fresh adapters in the last two layers and a random head, trained together in one stage.
    config.train.recipe = None
    config.train.mode = "lora"
    config.train.steps = 100
    config.train.expected_batch_size = 1024.0
    config.train.learning_rate = 3e-2
    config.train.schedule = "linear"
    config.privacy.l2_clip_norm = 0.1
    config.run.name = "openi_plain_eps8"
    config.run.eval_every = 50
    return config
