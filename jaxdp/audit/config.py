# SPDX-License-Identifier: Apache-2.0
"""Settings of an audit: those of the training it attacks, and its own."""

import dataclasses
from typing import Annotated

from ml_collections import config_dict

from jaxdp.config import Config
from jaxdp.settings import Check, Settings, at_least


@dataclasses.dataclass(frozen=True)
class AuditSettings(Settings, path="config.audit"):
    """How hard to attack."""

    gradient_canaries: Annotated[int, at_least(100)] = 5000
    """In each run; at most hidden size times labels, so that each has a direction of its own."""
    gradient_runs: Annotated[int, at_least(1)] = 3
    """Independent runs per variant with gradient canaries, judged together."""
    input_canaries: Annotated[int, at_least(100)] = 400
    small_epsilon: float = 0.1  # also trained at this epsilon, where every attack should fail
    guesses: Annotated[float, Check("in [0.02, 0.5]", lambda share: 0.02 <= share <= 0.5)] = 0.05
    """The share of the canaries that are guessed to be in; chosen before the attack."""
    confidence: Annotated[float, Check("in (0.5, 1)", lambda share: 0.5 < share < 1)] = 0.95
    """Of each lower bound, one-sided."""


@dataclasses.dataclass(frozen=True)
class AuditConfig(Config):
    """A training configuration with a section `audit`.

    Restricted to what the attack is made for: a head on frozen features, one stage, every report at
    every step. Without subsampling, T steps are one Gaussian mechanism of noise_multiplier /
    sqrt(T) exactly: the claim is tight, and theory says how sharp an attack can be.
    """

    audit: AuditSettings = AuditSettings()

    def __post_init__(self):
        super().__post_init__()
        privacy, train = self.privacy, self.train
        for field, wanted, holds in (
            ("privacy.epsilon", "finite: an audit tests a claim", privacy.private),
            (
                "audit.small_epsilon",
                f"in (0, privacy.epsilon = {privacy.epsilon})",
                privacy.private and 0 < self.audit.small_epsilon < privacy.epsilon,
            ),
            ("privacy.ledger", "None: an audit releases nothing", privacy.ledger is None),
            ("privacy.unit", '"report": a canary is one report', privacy.unit == "report"),
            ("data.task", '"multi-label" for an audit', self.data.task == "multi-label"),
            ("train.mode", '"head" for an audit', train.mode == "head"),
            ("train.queries", "False for an audit", not train.queries),
            ("train.query_share", "0 for an audit", not train.query_share),
            ("head_stage.steps", "0 for an audit", self.head_stage.steps == 0),
            ("centering.l2_clip_norm", "None for an audit", self.centering.l2_clip_norm is None),
            (
                "train.expected_batch_size",
                f"privacy.units = {privacy.units}, so that every report is in every step",
                train.expected_batch_size == privacy.units,
            ),
        ):
            self.require(holds, field, wanted)


def with_audit(training: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """A training configuration, extended by the section `audit` with its defaults."""
    with training.unlocked():
        training.audit = AuditSettings.defaults()
    return training
