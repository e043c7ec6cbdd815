# SPDX-License-Identifier: Apache-2.0
"""Reports made to be recognised, and a training collection that holds some of them.

Canaries are rows like any other: what trains on them is the unchanged training code.
"""

import dataclasses
from pathlib import Path

import numpy as np

from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.tokens import load_tokenizer
from jaxdp.data.units import PrivacyUnits
from jaxdp.models.classifier import ReportClassifier
from jaxdp.settings import ConfigError
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.setup import Inputs


@dataclasses.dataclass(frozen=True)
class GradientCanaries:
    """Hostile features and labels, whose head gradient always points in one direction.

    Canary i has a feature of norm NORM along a random direction q_i (where every label has its own
    feature, that of the label below has), and of all labels only number
    k_i is known: there it claims 127, where 1 is the largest honest value. With the training loss,
    binary cross-entropy, its gradient is (sigmoid(logit) - 127) / labels times (feature, 1) in
    column k_i of (kernel, bias), whatever the model: always in the same direction, and with a
    norm of at least 126 NORM / labels, far above any clip norm. So clipping makes it C exactly.
    The q_i of one column are orthonormal, hence canaries are orthogonal but for the bias, whose
    share is NORM^-2: no canary hides another.
    """

    NORM = 100.0

    features: np.ndarray  # [m, H] float32; see `rows` for what stands in the collection
    columns: np.ndarray  # [m] int, the k_i
    num_labels: int  # of the head

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, hidden: int, num_labels: int):
        """`count` of the hidden * num_labels pairs (q, k), without repetition."""
        basis = np.linalg.qr(rng.standard_normal((hidden, hidden)))[0]
        row, column = np.divmod(rng.permutation(hidden * num_labels)[:count], num_labels)
        return cls((cls.NORM * basis[row]).astype(np.float32), column, num_labels)

    @property
    def labels(self) -> np.ndarray:
        """[m, num_labels] int8: 127, or -1 for unknown."""
        known = np.arange(self.num_labels) == self.columns[:, None]
        return np.where(known, 127, -1).astype(np.int8)

    def rows(self, like: Packed) -> Packed:
        """As rows of the features `like`, [m, H] or with label attention [m, labels, H]."""
        values = self.features
        if like.values.ndim == 3:
            at_label = np.arange(self.num_labels)[:, None] == self.columns[:, None, None]
            values = np.where(at_label, values[:, None], 0)
        return Packed.from_lengths(values.astype(like.values.dtype), np.ones(len(values)))

    def alignment(self, kernel: np.ndarray) -> np.ndarray:
        """[m] inner products of a head kernel's gradient [H, num_labels] with each direction."""
        return -np.einsum("mh,mh->m", self.features, kernel.T[self.columns]) / self.NORM


RARE_TOKENS = 8  # of an input canary


def rare_reports(
    rng: np.random.Generator, count: int, tokens: Packed, vocabulary: int, num_labels: int
) -> tuple[Packed, np.ndarray]:
    """Input canaries: RARE_TOKENS positions of rare tokens, and labels that are coin flips.

    Rare are the half of the vocabulary that `tokens`, the honest reports, use least. First and last
    token are those of an honest report.

    Returns:
        (token ids, [count, num_labels] int8).
    """
    uses = np.bincount(tokens.values, minlength=vocabulary)
    rare = np.argsort(uses, kind="stable")[: vocabulary // 2]
    ids = rng.choice(rare, (count, RARE_TOKENS)).astype(tokens.values.dtype)
    ids[:, 0], ids[:, -1] = tokens.values[0], tokens.values[tokens.lengths[0] - 1]
    labels = rng.integers(0, 2, (count, num_labels), dtype=np.int8)
    return Packed.from_lengths(ids.reshape(-1), np.full(count, RARE_TOKENS)), labels


@dataclasses.dataclass(frozen=True)
class CanaryCollection:
    """All rows that any run of the audit can train on; `units` says which ones a run does.

    Rows of split "train": honest reports, input canaries, gradient canaries. Split "validation"
    holds the input canaries, so that the trained model can be asked about them.
    """

    features: dict[str, Packed]  # split -> what the head is trained on
    labels: dict[str, np.ndarray]  # split -> [rows, num_labels] int8
    honest: PrivacyUnits  # the privacy units without canaries
    gradient: GradientCanaries

    @classmethod
    def build(
        cls,
        inputs: Inputs,
        model: ReportClassifier,
        rng: np.random.Generator,
        *,
        gradient_canaries: int,
        input_canaries: int,
        buckets: Buckets,
        folder: Path | None,
    ) -> "CanaryCollection":
        """Draws so many canaries, and runs the backbone over those that have text; for `buckets`
        and `folder` see `FrozenLayers`."""
        hidden, num_labels = model.classifier.kernel.shape
        if gradient_canaries > hidden * num_labels:
            raise ConfigError(
                f"config.audit.gradient_canaries must be at most {hidden * num_labels}, "
                f"the entries of this head's kernel, not {gradient_canaries}"
            )
        honest = inputs.tokens["train"]
        gradient = GradientCanaries.draw(rng, gradient_canaries, hidden, num_labels)
        vocabulary = load_tokenizer(inputs.backbone.directory).get_vocab_size()
        rare, rare_labels = rare_reports(rng, input_canaries, honest, vocabulary, num_labels)
        tokens = {"train": joined(honest, rare), "validation": rare}
        frozen_layers = FrozenLayers(model, tokens, buckets, folder)
        features = dict(frozen_layers.at(model.feature_level))
        features["train"] = joined(features["train"], gradient.rows(features["train"]))
        labels = np.concatenate([inputs.labels["train"], rare_labels, gradient.labels])
        labels = {"train": labels, "validation": rare_labels}
        return cls(features, labels, inputs.units, gradient)

    def at(self, level: int) -> dict[str, Packed]:
        """What `StageTrainer` asks a `FrozenLayers` for; a head is trained at one level only."""
        return self.features

    def units(self, kind: str, included: np.ndarray) -> PrivacyUnits:
        """The honest reports and those canaries of a kind for which `included` [m] is true.

        The others are in no unit, hence in no step.
        """
        end = len(self.features["train"])
        if kind == "input":
            end -= len(self.gradient.features)
        rows = end - len(included) + np.flatnonzero(included)
        members = np.concatenate([self.honest.members, rows])
        return PrivacyUnits("report", members, np.arange(len(members) + 1))


def joined(*parts: Packed) -> Packed:
    """All rows, one part after the other."""
    return Packed.from_lengths(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )
