# SPDX-License-Identifier: Apache-2.0
"""The frozen part of the model, run once per report; and the private mean of what it gives."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxdp import dp
from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import Watch, cache_level, unwatched
from jaxdp.models.classifier import ReportClassifier

from .randomness import RunSecret


class FrozenLayers:
    """Training and validation reports at any level below the trainable parameters, cached.

    Valid as long as nothing below the asked level is trained, which is what `start_level` says.

    Args:
        model: as it is before training.
        reports: split -> reports at `level`, which is 0 for token ids.
        buckets, folder, mesh, watch: see `cache_level`.
    """

    def __init__(
        self,
        model: ReportClassifier,
        reports: dict[str, Packed],
        buckets: Buckets,
        folder: Path | None = None,
        mesh: Mesh | None = None,
        watch: Watch = unwatched,
        level: int = 0,
    ):
        self._parts = nnx.split(model)
        self._buckets = buckets
        self._options = {"folder": folder, "mesh": mesh, "watch": watch}
        self._levels = {level: reports}

    def at(self, level: int) -> dict[str, Packed]:
        """Split -> the reports at `level`, on the host; made from the nearest level below."""
        if level not in self._levels:
            below = max(known for known in self._levels if known < level)
            self._levels[level] = cache_level(
                *self._parts, self._levels[below], below, level, self._buckets, **self._options
            )
        return self._levels[level]


def mean_feature(
    features: Packed,
    units: PrivacyUnits,
    mechanism: dp.SubsampledGaussian | None,
    secret: RunSecret,
    *,
    secure_noise: bool = False,
) -> np.ndarray:
    """The mean training feature, float32: one release of `mechanism`, or exact without one.

    A pure function of its arguments: a resumed run gets the same noise, so it releases once. Each
    unit shows one report, as in a training step.
    """
    if mechanism is None:
        return features.values.mean(axis=0, dtype=np.float32)
    sampler = dp.PoissonSampler(
        secret.sampling_seed("feature mean"), mechanism.sampling_probability, units.num_units
    )
    shown = jnp.asarray(features.values[units.reports_at(0, sampler)])
    one = jax.ShapeDtypeStruct(shown.shape[1:], jnp.float32)
    noise, draw = secret.release(mechanism, "feature mean", one, secure=secure_noise)
    release = optax.chain(dp.clip_and_sum(mechanism.l2_clip_norm), noise)
    mean, _ = jax.jit(release.update)(shown, release.init(one), **draw(0))
    return np.asarray(mean)
