# SPDX-License-Identifier: Apache-2.0
"""CT-RATE, BERT-medium, epsilon 1 per report. The base of all CT-RATE configs.

python scripts/train.py --config configs/ctrate_eps1.py --config.data.root=/data/ct-rate

Result: not run (the data are gated). The study states data, model, rank and epsilons; steps, batch,
learning rates, clip norms, public start and head stage are ours, transferred from Open-I and
PadChest, and marked so.
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.source = "ctrate"
    config.data.max_length = 512  # ours
    config.model.backbone = "bert-medium"

    # Ours, as it did most for Open-I and PadChest: adapters and head first learn made-up reports.
    config.warm_start.phrasebook = "ct_en"
    config.warm_start.steps = 100

    config.centering.l2_clip_norm = 22.0  # ours: tanh features of width 512 have norm <= 22.6
    config.head_stage.steps = 200  # ours, as all of this stage
    config.head_stage.expected_batch_size = 22800.0
    config.head_stage.learning_rate = 0.1
    config.head_stage.schedule = "linear"
    config.head_stage.l2_clip_norm = 0.1
    config.head_stage.epsilon_share = 0.6

    config.train.steps = 400  # ours
    config.train.expected_batch_size = 2048.0  # ours
    config.train.learning_rate = 1e-3  # ours
    config.train.schedule = "linear"

    config.privacy.epsilon = 1.0
    config.privacy.delta = 1e-5
    # Published: 20,000 training patients with about 1.2 scans each, less 5 % held out.
    config.privacy.units = 22800
    config.privacy.l2_clip_norm = 0.1  # ours

    config.run.name = "ctrate_eps1"
    config.run.eval_every = 50
    config.run.checkpoint_every = 25
    return config
