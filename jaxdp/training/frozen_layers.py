# SPDX-License-Identifier: Apache-2.0
"""The frozen part of the model, run once per report; and the private mean of what it gives."""

from collections.abc import Callable
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
from jaxdp.data.store import key_of, stored
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import Watch, on_all, run_on_all, unwatched
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.label_attention import Basis, along

from .randomness import RunSecret

_AT_ONCE = 512  # reports whose kept features are projected together


class FrozenLayers:
    """Reports of every split at any level below the trainable parameters: each is made once, on the
    host, from the nearest level below, and kept.

    Hidden states stay packed: [tokens, H] for the reports' real tokens only. Features are [n, H],
    or [n, labels, H] with label attention, with every length 1. float32, but what has a row for
    each label float16: its rounding, 2^-11, is far below what any noise leaves of a feature.

    Valid as long as nothing below the asked level is trained, which is what `start_level` says.

    Args:
        model: as it is before training.
        reports: split -> reports at `level`, which is 0 for token ids, see `models.classifier`.
        buckets: shapes to run in; one compilation serves all splits.
        folder: for `store.stored`, where levels are found again by a hash of the program, its
            weights and the reports; features in all of their dimensions, so that runs along other
            directions share them. None keeps nothing.
        mesh: devices to share the reports, to the same bits; None is the default device alone.
        watch: called for each split that is not found in `folder`.
        level: of `reports`.
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
        self._buckets, self._folder, self._mesh, self._watch = buckets, folder, mesh, watch
        self._levels = {level: reports}

    def at(self, level: int) -> dict[str, Packed]:
        """Split -> the reports at `level`."""
        if level not in self._levels:
            below = max(known for known in self._levels if known < level)
            self._levels[level] = self._advanced(below, level)
        return self._levels[level]

    def above(self, level: int, model: ReportClassifier) -> "FrozenLayers":
        """Those of a model that is the same up to `level`, from what is known there and nothing
        else; what they give is for this model alone, and in no folder."""
        known = self.at(level)
        return FrozenLayers(model, known, self._buckets, None, self._mesh, self._watch, level)

    def _advanced(self, start: int, level: int) -> dict[str, Packed]:
        graphdef, state = self._parts
        splits, model = self._levels[start], nnx.merge(graphdef, state)
        features, directions = level == model.feature_level, None
        if features and self._folder is not None and model.basis is not None:
            directions, model.basis = model.basis.directions, Basis(model.basis.center[...])
            graphdef, state = nnx.split(model)
        advance = advancing(graphdef, start, level)
        everywhere = on_all(advance, self._mesh)

        def made(reports: Packed) -> Packed:
            packed = None
            lengths = np.ones_like(reports.lengths) if features else reports.lengths
            done = run_on_all(everywhere, state, reports, self._buckets, self._mesh, self._watch)
            for rows, taken, output in done:
                if packed is None:
                    shape = (lengths.sum(), *output.shape[1 if features else 2 :])
                    kept = np.float16 if len(shape) == 3 else np.float32
                    packed = Packed.from_lengths(np.empty(shape, kept), lengths)
                real = rows >= 0
                if features:
                    packed.values[rows[real]] = output[real]
                    continue
                # Each row of states begins with its reports' real tokens, end to end.
                filled = taken.reshape(len(output), -1).sum(axis=1)
                states = output[np.arange(output.shape[1]) < filled[:, None]]
                begins = packed.offsets[rows[real]] - (taken.cumsum() - taken)[real]
                packed.values[np.arange(len(states)) + begins.repeat(taken[real])] = states
            return packed

        if self._folder is None:
            return {split: made(reports) for split, reports in splits.items()}
        some = next(iter(splits.values()))
        width, slots, together = next(self._buckets.shapes)
        blank = some.gather(np.full(slots, -1), width, together)
        program = jax.jit(advance).lower(state, *blank).as_text()
        later = ("classifier",) if features else ("classifier", "label_attention", "basis")
        weights = nnx.filter_state(state, nnx.Not(nnx.Any(*map(nnx.PathContains, later))))
        if not _adapters_act(model, state, level):
            # Fresh ones change nothing, and would make the hash that of one run.
            weights = nnx.filter_state(weights, nnx.Not(nnx.LoRAParam))

        def found(reports: Packed) -> Packed:
            arrays = (*jax.tree.leaves(weights), reports.lengths, reports.values)
            key = key_of(f"{jax.__version__} {self._buckets} {program}", arrays)
            kept = stored(self._folder, key, lambda: (made(reports), 0))[0]
            return kept if directions is None else _projected(kept, directions[...], model)

        return {split: found(reports) for split, reports in splits.items()}


def advancing(graphdef: nnx.GraphDef, start: int, level: int) -> Callable[..., jax.Array]:
    """(state, values [rows, width, ...], lengths) -> what they are at `level`: the rows' states, or
    the reports' features."""

    def advance(state, values, lengths):
        model = nnx.merge(graphdef, state)
        out = jax.vmap(lambda x, n: model.advance(x, n, start, level))(values, lengths)
        return out.reshape(-1, *out.shape[lengths.ndim :]) if level == model.feature_level else out

    return advance


def _projected(features: Packed, directions: jax.Array, model: ReportClassifier) -> Packed:
    """Centred features of a model -> their coordinates, whose products have its precision."""

    @jax.jit
    def project(features, directions):
        with model.precise():
            return along(features.astype(np.float32), directions)

    shape = (*features.values.shape[:2], directions.shape[2])
    values = np.empty(shape, features.values.dtype)
    for begin in range(0, len(features), _AT_ONCE):
        share = slice(begin, begin + _AT_ONCE)
        values[share] = project(features.values[share], directions)
    return Packed.from_lengths(values, features.lengths)


def _adapters_act(model: ReportClassifier, state: nnx.State, level: int) -> bool:
    """Whether any adapter has a say in what the model gives at `level`: its B is not zero."""
    return any(
        path[-1] == "lora_b" and model.level_of(path) < level and bool(leaf[...].any())
        for path, leaf in nnx.to_flat_state(state)
    )


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
