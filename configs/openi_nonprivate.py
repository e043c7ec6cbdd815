# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, without privacy: what LoRA reaches on these data from the same public start.

python scripts/train.py --config configs/openi_nonprivate.py

Result: test weighted F1 0.933, mean of two runs (0.931, 0.934);
nothing is random but the sample, which a sweep's members share.
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "openi_eps8")
    config.privacy.epsilon = None
    config.warm_start.readers = 2  # as with privacy, for twice the time of a step
    config.train.steps = 300
    config.train.learning_rate = 2e-3
    config.train.schedule = "linear"
    config.run.name = "openi_nonprivate"
    return config
