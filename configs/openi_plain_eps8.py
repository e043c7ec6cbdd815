# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, epsilon 8: plain DP-LoRA as the study describes it, to be compared with.

python scripts/compare_pytorch.py --config configs/openi_plain_eps8.py --level runs \
    --epsilons 1,8 --seeds 3
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "openi_eps8")
    # Fresh adapters in the last two layers and a random head, trained together in one stage.
    config.train.recipe = None
    config.train.mode = "lora"
    config.train.steps = 36
    config.train.expected_batch_size = 256.0
    config.train.learning_rate = 1e-2
    config.train.schedule = "linear"
    config.privacy.l2_clip_norm = 0.1
    config.run.name = "openi_plain_eps8"
    config.run.eval_every = 12
    return config
