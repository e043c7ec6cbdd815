# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, epsilon 1 per report. The base of all PadChest configs.

python scripts/train.py --config configs/padchest_eps1.py

Result: test weighted F1 0.934 (0.934 to 0.935),
mean and range over 3 runs.

A patient has up to 116 reports; padchest_patient_eps1.py protects patients.
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.source = "padchest"
    config.model.backbone = "minilm-l6"

    config.model.pooling = "mean-last2"

    # Public: adapters in the last two layers, and a head, that know how findings are put in words.
    # An English backbone has more to learn from Spanish than openi_eps8 from English.
    config.warm_start.phrasebook = "chest_es"
    config.warm_start.reports = 10_000
    config.warm_start.steps = 400
    config.lora.layers = "last:2"

    # Private: the head alone, on every report at every step. Pooled features have norms of about 5.
    config.centering.l2_clip_norm = 6.0
    config.train.mode = "head"
    config.train.steps = 200
    config.train.expected_batch_size = 85_000.0
    config.train.learning_rate = 0.3
    config.train.schedule = "linear"

    config.privacy.epsilon = 1.0
    # A public round number; the split has 85,948 training reports of 53,041 patients.
    config.privacy.units = 85_000
    config.privacy.l2_clip_norm = 0.03

    config.run.name = "padchest_eps1"
    config.run.eval_every = 50
    config.run.checkpoint_every = 100
    return config
