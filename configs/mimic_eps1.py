# SPDX-License-Identifier: Apache-2.0
"""MIMIC-CXR, BERT-medium, epsilon 1 per report. The base of all MIMIC configs.

python scripts/train.py --config configs/mimic_eps1.py --config.data.root=/data/mimic-cxr

Result: not run (the data are gated). Data, model, rank and epsilon are the study's; the recipe is
the one that gave most on Open-I and PadChest, transferred and not measured. Trained in private: the
head alone, 512 numbers and a bias for each of 14 labels, on every report at every step.
mimic_plain_eps1.py is the study's own.
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
    # Public: adapters in the last two layers, what each label asks for, and a head. ALBERT with its
    # one shared layer takes "all".
    config.lora.layers = "last:2"
    config.train.recipe = "auto"

    config.privacy.epsilon = 1.0
    # Below 1 / 222,758, the published number of training studies.
    config.privacy.delta = 4e-6
    config.privacy.units = 222758

    config.run.name = "mimic_eps1"
    config.run.eval_every = 50
    config.run.checkpoint_every = 50
    return config
