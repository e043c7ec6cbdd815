# SPDX-License-Identifier: Apache-2.0
"""A whole audit: every variant trained with each kind of canary, attacked, and judged."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxdp import dp
from jaxdp.data.batching import Buckets
from jaxdp.data.units import PrivacyUnits
from jaxdp.models.classifier import ReportClassifier
from jaxdp.training.mesh import make_mesh
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import keeping, load_inputs, token_buckets
from jaxdp.training.stages import Stage, plan_run
from jaxdp.training.trainer import StageMember, StageTrainer
from jaxdp.training.warm_start import build_model

from .attack import gradient_scores, input_scores
from .bound import Bounds, load_auditor, lower_bounds
from .canaries import RARE_TOKENS, CanaryCollection
from .config import AuditConfig
from .variants import Variant, all_variants

HEADINGS = ("canaries", "trained", "claimed epsilon", "lower bound", "general bound", "AUROC", "")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the runs of one variant showed with one kind of canary."""

    kind: str  # of the canaries: "gradient" or "input"
    variant: Variant  # what was trained
    claim: float  # the epsilon it would state; infinity without privacy
    scores: np.ndarray  # [m], high for in
    included: np.ndarray  # [m] bool, which canaries were in
    bounds: Bounds  # what the scores prove

    @property
    def violated(self) -> bool:
        return self.bounds.epsilon > self.claim

    def row(self) -> dict[str, Any]:
        """JSON-ready, without the scores."""
        return {
            "canaries": self.kind,
            "variant": self.variant.name,
            "broken": self.variant.broken,
            "claimed_epsilon": self.claim if math.isfinite(self.claim) else "infinite",
            "epsilon_lower_bound": self.bounds.epsilon,
            "epsilon_lower_bound_any_mechanism": self.bounds.epsilon_any,
            "violated": self.violated,
            "auroc": self.bounds.auroc,
            "canaries_in": int(self.included.sum()),
            "canaries_out": int((~self.included).sum()),
        }

    def cells(self) -> list[str]:
        """A row under HEADINGS."""
        return [
            self.kind,
            self.variant.name,
            f"{self.claim:.3g}" if math.isfinite(self.claim) else "none",
            f"{self.bounds.epsilon:.2f}",
            f"{self.bounds.epsilon_any:.2f}",
            f"{self.bounds.auroc:.3f}",
            "VIOLATED" if self.violated else "",
        ]


@dataclasses.dataclass(frozen=True)
class Audit:
    """Everything of an audit in memory, ready to attack any variant."""

    config: AuditConfig
    stage: Stage  # the training that is attacked
    secret: RunSecret  # all randomness comes from it
    model: ReportClassifier  # untrained; runs train copies
    collection: CanaryCollection  # honest reports and canaries
    buckets: Buckets  # shapes to run in

    @classmethod
    def prepare(cls, config: AuditConfig) -> "Audit":
        """Reads data and model, and draws the canaries.

        Raises:
            ConfigError, AssetError, DataError, WeightsError: data or model cannot be used, or
                jax-privacy is not installed.
        """
        load_auditor()
        stage = plan_run(config).stages[-1]
        secret = RunSecret.create(config.run.research_seed)
        inputs = load_inputs(config)
        model, _ = build_model(config, inputs.backbone, inputs.dataset.label_names, secret)
        buckets = token_buckets(config, np.append(inputs.lengths, RARE_TOKENS))
        collection = CanaryCollection.build(
            inputs,
            model,
            _stream(secret, "canaries"),
            gradient_canaries=config.audit.gradient_canaries,
            input_canaries=config.audit.input_canaries,
            buckets=buckets,
            folder=keeping(config.data.cache),
        )
        return cls(config, stage, secret, model, collection, buckets)

    def trainer(
        self,
        name: str,
        mechanism: dp.SubsampledGaussian | None,
        secret: RunSecret,
        units: PrivacyUnits,
    ) -> StageTrainer:
        """The real trainer, as `run.train` makes it, on `units` of the collection."""
        stage = dataclasses.replace(self.stage, name=name, mechanism=mechanism)
        return StageTrainer(
            [StageMember(stage, self.model, secret)],
            frozen_layers=self.collection,
            labels=self.collection.labels,
            units=units,
            token_buckets=self.buckets,
            secure_noise=self.config.privacy.secure_noise,
            mesh=make_mesh(self.config.run.devices),
        )

    def attack(self, variant: Variant, kind: str) -> Finding:
        """Trains a variant, with half of the canaries of a kind in, and judges the scores.

        Each run has its own coins and its own noise. A variant's runs with gradient canaries are
        judged as one mechanism with runs * m canaries: each coin reaches one run only, so what
        protects a canary in its run protects it in all of them together.
        """
        settings, delta = self.config.audit, self.config.privacy.delta
        count, runs = {
            "gradient": (settings.gradient_canaries, settings.gradient_runs),
            "input": (settings.input_canaries, 1),
        }[kind]
        coins, scores = [], []
        for number in range(runs):
            name = f"{kind} canaries, {variant.name}, {number}"
            coins.append(_stream(self.secret, name).random(count) < 0.5)
            units = self.collection.units(kind, coins[-1])
            trainer = self.trainer(name, variant.trained, variant.secret(self.secret.root), units)
            if kind == "gradient":
                silent = variant.trained and variant.trained.replace(noise_multiplier=0.0)
                honest = self.trainer("honest", silent, self.secret, self.collection.honest)
                scores.append(gradient_scores(trainer, honest, self.collection.gradient))
            else:
                scores.append(input_scores(trainer, self.collection.labels["validation"]))
        included, scores = np.concatenate(coins), np.concatenate(scores)
        bounds = lower_bounds(
            scores, included, delta=delta, guesses=settings.guesses, confidence=settings.confidence
        )
        claim = dp.epsilon_pld([variant.claimed], delta) if variant.claimed else math.inf
        return Finding(kind, variant, claim, scores, included, bounds)


def _stream(secret: RunSecret, name: str) -> np.random.Generator:
    return np.random.default_rng(secret.sampling_seed(f"audit/{name}"))


def run_audit(config: AuditConfig, progress: Callable[[str], None]) -> list[Finding]:
    """Attacks every variant with each kind of canary; for errors see `Audit.prepare`."""
    progress("reading reports, computing features")
    audit = Audit.prepare(config)
    findings = []
    for variant in all_variants(
        audit.stage.mechanism, config.audit.small_epsilon, config.privacy.delta
    ):
        for kind in ("gradient", "input"):
            progress(f"attacking with {kind} canaries: {variant.name}")
            findings.append(audit.attack(variant, kind))
    return findings


def showings(findings: list[Finding]) -> dict[str, bool]:
    """What an audit of sound code by a sharp attack has to show -> whether it did."""
    sound = [f for f in findings if not f.variant.broken]
    caught = [f.violated for f in findings if f.variant.broken and f.kind == "gradient"]
    small = [f.bounds.auroc for f in sound if f.variant.name == "small epsilon"]
    free = [f.bounds.auroc for f in sound if f.variant.claimed is None]
    return {
        "correct code: no lower bound exceeds its claim": not any(f.violated for f in sound),
        "broken code: every gradient attack proves a violation": all(caught),
        "small epsilon: AUROC within 0.1 of 0.5": all(abs(a - 0.5) < 0.1 for a in small),
        "no privacy: AUROC above 0.9": all(a > 0.9 for a in free),
    }


def summary(config: AuditConfig, findings: list[Finding]) -> dict[str, Any]:
    """JSON-ready: settings, one row per finding, and what they show."""
    return {
        "delta": config.privacy.delta,
        "confidence": config.audit.confidence,
        "config": config.to_dict(),
        "findings": [finding.row() for finding in findings],
        "showings": showings(findings),
    }
