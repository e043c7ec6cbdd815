# SPDX-License-Identifier: Apache-2.0
"""MIMIC-CXR, BERT-medium, epsilon 1 per report: plain DP-LoRA as the study describes it.

python scripts/train.py --config configs/mimic_plain_eps1.py --config.data.root=/data/mimic-cxr

Result: not run (the data are gated). Steps, batch, rate and clip norm are ours.
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "mimic_eps1")
    # Fresh adapters and a random head, trained together in one stage.
    config.train.recipe = None
    config.lora.layers = "all"
    config.train.steps = 1000
    config.train.expected_batch_size = 4096.0
    config.train.learning_rate = 1e-3
    config.privacy.l2_clip_norm = 0.1
    config.run.name = "mimic_plain_eps1"
    return config
