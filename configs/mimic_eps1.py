# SPDX-License-Identifier: Apache-2.0
"""MIMIC-CXR, BERT-medium, epsilon 1 per report. The base of all MIMIC configs.

python scripts/train.py --config configs/mimic_eps1.py --config.data.root=/data/mimic-cxr

Result: not run (the data are gated). Data, model, rank and epsilon are the study's. The recipe is
the one that gave most on Open-I and PadChest, transferred and not measured; mimic_plain_eps1.py is
the study's own.
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.source = "mimic"
    # The published labels were computed on this section of each report.
    config.data.text = "labelled-section"
    # Ours: uncertain and unmentioned findings are negative, which CheXpert's authors call U-Zeros:
    # a report that only wonders about a finding does not diagnose it, and blank means unmentioned,
    # never unread. The study's abstract states no policy; its later versions train on labels by a
    # larger model, which is config.teacher here. The other choices are "ones" and "ignore" (out of
    # loss and metrics).
    config.data.uncertain = "zeros"
    config.data.blank = "zeros"
    config.data.max_length = 256  # ours
    config.model.backbone = "bert-medium"
    config.model.pooling = "mean-last2"

    # Public: adapters and a head that know how findings are put in words. In all layers, which gave
    # on Open-I what the last two give, and which ALBERT with its one shared layer can have.
    config.warm_start.phrasebook = "mimic_en"
    config.warm_start.steps = 100

    # Layers of width 512 end in vectors of norm 22.6 before their learned scales, which are below
    # 1 for most coordinates of a BERT; of longer ones the mean would be of their shortened images.
    config.centering.l2_clip_norm = 22.0

    # Private: the head alone, on every report at every step.
    config.train.mode = "head"
    config.train.steps = 200
    config.train.expected_batch_size = 222758.0
    config.train.learning_rate = 0.3
    config.train.schedule = "linear"

    config.privacy.epsilon = 1.0
    # Below 1 / 222,758, the published number of training studies.
    config.privacy.delta = 4e-6
    config.privacy.units = 222758
    config.privacy.l2_clip_norm = 0.03

    config.run.name = "mimic_eps1"
    config.run.eval_every = 50
    config.run.checkpoint_every = 50
    return config
