# SPDX-License-Identifier: Apache-2.0
"""From scores to a lower bound on epsilon, with jax_privacy's auditor."""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

from jaxdp.settings import ConfigError


def load_auditor():
    """`jax_privacy.auditing`, an optional dependency; ConfigError if it is missing."""
    try:
        from jax_privacy import auditing
    except ImportError:
        raise ConfigError("an audit needs jax-privacy: pip install 'jaxdp-text[audit]'") from None
    return auditing


class Bounds(NamedTuple):
    """What one run's scores prove."""

    auroc: float  # chance that a canary that is in scores higher than one that is out
    epsilon: float  # lower bound, for mechanisms whose trade-off curve is Gaussian
    epsilon_any: float  # lower bound, for any mechanism


def lower_bounds(
    scores: np.ndarray, included: np.ndarray, *, delta: float, guesses: float, confidence: float
) -> Bounds:
    """Lower bounds on epsilon at `delta` from ONE run with many canaries.

    The highest scores are guessed to be in. Under (epsilon, delta)-DP per canary, the number of
    right guesses is bounded in distribution: for any mechanism (Steinke, Nasr, Jagielski, 2023),
    and more tightly where its trade-off curve is that of a Gaussian mechanism (Mahloujifar, Melis,
    Chaudhuri, 2024), as it is for T unsampled Gaussian steps. Each bound exceeds an epsilon that
    holds with probability at most 1 - confidence. Both assume that

    - each canary was in by its own fair coin, independent of all else: not exactly half of them,
    - scores were made without the coins,
    - the number of guesses was fixed before: it is the share `guesses`, rounded.

    Canaries of one run need not be independent of each other. That is why Clopper-Pearson, which
    takes them for independent trials, is not used, nor the best of all thresholds.

    Args:
        scores: [m], high for in.
        included: [m] bool, the coins.
        delta: in (0, 1).
        guesses: share of the canaries.
        confidence: of each bound.
    """
    auditing = load_auditor()
    auditor = auditing.CanaryScoreAuditor(scores[included], scores[~included])
    threshold = np.sort(scores)[-round(guesses * len(scores))]
    settings = dict(
        significance=1 - confidence,
        delta=delta,
        threshold_strategy=auditing.Explicit(float(threshold)),
    )
    return Bounds(
        # Not the auditor's, which is the area under the concave hull and so above 0.5 by chance.
        float(roc_auc_score(included, scores)),
        float(auditor.epsilon_one_run_fdp(**settings)),
        float(auditor.epsilon_one_run(**settings)),
    )
