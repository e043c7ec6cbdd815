# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, a head alone on frozen features, epsilon 1 at delta 1e-5 per report.

python scripts/train.py --config configs/openi_head_eps1.py

Result: see below.
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "openi_eps8")
    # The head stage of openi_eps8, with all that is left of the budget.
    config.head_stage.steps = 0
    config.train.mode = "head"
    config.train.steps = 200
    config.train.expected_batch_size = 3100.0
    config.train.learning_rate = 0.3
    config.privacy.epsilon = 1.0
    config.run.name = "openi_head_eps1"
    config.run.eval_every = 50
    config.run.checkpoint_every = 50
    return config
