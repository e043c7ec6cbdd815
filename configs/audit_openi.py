# SPDX-License-Identifier: Apache-2.0
"""An attack on our own training: Open-I, MiniLM, a head on frozen features at claimed epsilon 4.

python scripts/audit.py --config configs/audit_openi.py
"""

from jaxdp.audit.config import with_audit
from jaxdp.config import inherit


def get_config():
    config = with_audit(inherit(__file__, "openi_head_eps8"))
    # Every report at every step: then T steps are exactly one Gaussian mechanism. The claim is
    # tight, and what the attack loses is the attack's own doing.
    config.train.expected_batch_size = 3100.0
    config.centering.l2_clip_norm = None
    # Their number then does not matter to what can be proven; with these, training without privacy
    # learns its input canaries by heart.
    config.train.steps = 50
    # 15,000 gradient canaries prove about 0.65 of the true signal-to-noise ratio: the theory of one
    # run takes the rest. Halved noise doubles the ratio, so it is proven clearly; far above 4, even
    # all guesses right would not prove twice the ratio.
    config.privacy.epsilon = 4.0
    config.run.name = "audit_openi"
    config.run.research_seed = 0
    return config
