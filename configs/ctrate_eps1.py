# SPDX-License-Identifier: Apache-2.0
"""CT-RATE, BERT-medium, epsilon 1 per report. The base of all CT-RATE configs.

python scripts/train.py --config configs/ctrate_eps1.py --config.data.root=/data/ct-rate

Result: not run (the data are gated). Data, model, rank and epsilon are the study's. The recipe is
the one that gave most on Open-I and PadChest, transferred and not measured; ctrate_plain_eps1.py is
the study's own.
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.source = "ctrate"
    # Ours: where 512 tokens are too few, it is the findings that are cut.
    config.data.text = "impression+findings"
    config.data.max_length = 512
    config.model.backbone = "bert-medium"
    config.model.pooling = "mean-last2"

    # Public: adapters and a head that know how findings are put in words. In all layers, which gave
    # on Open-I what the last two give, and which ALBERT with its one shared layer can have.
    config.warm_start.phrasebook = "ct_en"
    config.warm_start.steps = 100

    # Layers of width 512 end in vectors of norm 22.6 before their learned scales, which are below
    # 1 for most coordinates of a BERT; of longer ones the mean would be of their shortened images.
    config.centering.l2_clip_norm = 22.0

    # Private: the head alone, on every report at every step.
    config.train.mode = "head"
    config.train.steps = 200
    config.train.expected_batch_size = 22800.0
    config.train.learning_rate = 0.1
    config.train.schedule = "linear"

    config.privacy.epsilon = 1.0
    config.privacy.delta = 1e-5
    # Published: 20,000 training patients with about 1.2 scans each, less 5 % held out.
    config.privacy.units = 22800
    config.privacy.l2_clip_norm = 0.03

    config.run.name = "ctrate_eps1"
    config.run.eval_every = 50
    config.run.checkpoint_every = 50
    return config
