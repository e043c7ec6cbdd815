# SPDX-License-Identifier: Apache-2.0
"""One stage, ready to step: compiled function, data on the device, sampler, state."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxdp import dp
from jaxdp.data.batching import Buckets, Plan
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import Predictor, packed_logits
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier

from .mesh import WHOLE, frozen_specs, place, to_host
from .prefix import FrozenPrefix
from .randomness import RunSecret
from .stages import Stage, make_optimizer
from .step import LabelledData, TrainState, make_train_step, multilabel_loss, plain_gradient_sum


class StageTrainer:
    """Runs the steps of one stage.

    Whatever no trainable parameter of the stage influences is computed once, here: token ids become
    hidden states, or features, and the steps start from those (same gradients, same guarantee).

    Where a `center` is given, the head is trained on centred features: the same functions, better
    conditioned. `install` writes an ordinary head.

    Args:
        stage: what to run.
        model: its parameters are copied; `install` writes the trained ones back.
        prefix: gives the reports at the level where the stage starts.
        labels: split -> [n, num_labels].
        units: of the training reports.
        secret: gives this stage's sampling seed and noise key.
        token_buckets: microbatch shapes for whole reports; those for features follow from them.
        center: [H], public or released; or 0.
        secure_noise: noise from `dp.SecureNoise`.
        mesh: devices to share the work; None is the default device alone.
        shard_frozen: share the frozen weights out over the mesh, too.
    """

    def __init__(
        self,
        stage: Stage,
        model: ReportClassifier,
        *,
        prefix: FrozenPrefix,
        labels: dict[str, np.ndarray],
        units: PrivacyUnits,
        secret: RunSecret,
        token_buckets: Buckets,
        center: np.ndarray | float = 0.0,
        secure_noise: bool = False,
        mesh: Mesh | None = None,
        shard_frozen: bool = False,
    ):
        self.stage = stage
        self._model = model
        self._center = center
        graphdef, adapters, frozen = lora.split(model, stage.mode)
        # Copies: the step donates its state, and the model keeps its own parameters.
        adapters = _shift_head(jax.tree.map(jnp.copy, adapters), center)
        self.level = model.start_level(adapters)
        at_feature = self.level == model.feature_level
        self.buckets = token_buckets.for_features() if at_feature else token_buckets
        reports = prefix.at(self.level)
        train, self._validation = reports["train"], reports["validation"]
        self._lengths = train.lengths
        # Arguments of the compiled step, not constants in it: its program is cached on disk.
        frozen = (frozen, jnp.float32(center))
        if at_feature:
            train = dataclasses.replace(train, values=train.values - center)
            frozen = (frozen[0], jnp.float32(0.0))
        specs = frozen_specs(frozen, mesh) if shard_frozen and mesh else WHOLE
        self._frozen = place(frozen, mesh, specs)
        self._data = place(LabelledData(train, labels["train"]), mesh)

        self._units = units
        mechanism = stage.mechanism
        batch = stage.settings.expected_batch_size
        self._sampler = dp.PoissonSampler(
            secret.sampling_seed(stage.name),
            mechanism.sampling_probability if mechanism else min(batch / units.num_units, 1.0),
            units.num_units,
        )
        # A draw beyond this happens less than once in 10^15 steps, and only costs a compilation.
        draw = batch + 8 * math.sqrt(batch)
        self._capacity = _round_up(min(draw, units.num_units) + max(self.buckets.rows))

        def loss(adapters, frozen, values, length, labels):
            frozen, center = frozen
            merged = nnx.merge(graphdef, adapters, frozen)
            logits = packed_logits(merged, values, length, self.level, center)
            return multilabel_loss(logits, labels)

        if mechanism:
            gradient_sum = partial(
                dp.clipped_gradient_sum,
                l2_clip_norm=mechanism.l2_clip_norm,
                value_and_grad=_head_value_and_grad if at_feature else jax.value_and_grad,
            )
            like = jax.eval_shape(lambda: adapters)
            release, self._draw = secret.release(mechanism, stage.name, like, secure=secure_noise)
        else:
            gradient_sum = plain_gradient_sum
            release, self._draw = optax.scale(1 / batch), lambda step: {}
        optimizer = optax.chain(release, make_optimizer(stage.settings))
        self._step = jax.jit(
            make_train_step(loss, gradient_sum, optimizer, self.buckets, mesh, specs),
            donate_argnums=0,
            out_shardings=mesh and NamedSharding(mesh, WHOLE),
        )
        self.initial_state = place(TrainState(adapters, optimizer.init(adapters)), mesh)
        self._predict = Predictor(graphdef, self.level, self.buckets, mesh)

    def plan(self, step: int) -> Plan:
        """The microbatches of `step`: a pure function of the secret and the step."""
        reports = self._units.reports_at(step, self._sampler)
        while True:
            try:
                return self.buckets.plan(reports, self._lengths, self._capacity)
            except OverflowError:
                self._capacity *= 2

    def step(
        self, state: TrainState, step: int, plan: Plan
    ) -> tuple[TrainState, dp.ClipDiagnostics]:
        """One release and one update; `state` is consumed. Returns before the device is done."""
        return self._step(state, self._frozen, self._data, plan, **self._draw(step))

    def export(self, platforms: Sequence[str]) -> jax.export.Exported:
        """The step, lowered for "cpu", "cuda" or "tpu" and the mesh's number of devices, whatever
        there is here; nothing is compiled."""
        arguments = (self.initial_state, self._frozen, self._data, self.plan(0))
        return jax.export.export(self._step, platforms=platforms)(*arguments, **self._draw(0))

    def describe(self, plan: Plan) -> tuple[int, float]:
        """(reports that take part, share of the computed positions that are real)."""
        rows = plan.rows[plan.rows >= 0]
        return len(rows), float(self._lengths[rows].sum() / max(self.buckets.positions(plan), 1))

    def validation_probabilities(self, state: TrainState) -> np.ndarray:
        """[n, num_labels] for the validation split."""
        return self._predict(state.adapters, self._frozen[0], self._validation, self._center)

    def install(self, state: TrainState) -> None:
        """Writes the trained parameters into the model."""
        adapters = jax.tree.map(jnp.asarray, to_host(state.adapters))
        nnx.update(self._model, _shift_head(adapters, -self._center))


def _shift_head(adapters: nnx.State, center: np.ndarray | float) -> nnx.State:
    """The adapters whose head gives the same logits on features from which `center` was taken."""
    head = adapters["classifier"]
    shift = jnp.broadcast_to(center, head["kernel"].shape[:1]) @ head["kernel"][...]
    head["bias"][...] = head["bias"][...] + shift
    return adapters


def _head_value_and_grad(loss_fn):
    """`jax.value_and_grad` of a head on features: a linear layer, whose kernel's gradient is the
    outer product of the feature and the bias' gradient."""

    def value_and_grad(head, feature, *report):
        bias, kernel = jax.tree.leaves(head)
        structure = jax.tree.structure(head)

        def loss(bias):
            return loss_fn(jax.tree.unflatten(structure, [bias, kernel]), feature, *report)

        value, gradient = jax.value_and_grad(loss)(bias)
        outer = dp.OuterProducts(feature[0], gradient)
        return value, jax.tree.unflatten(structure, [gradient, outer])

    return value_and_grad


def _round_up(slots: float, multiple: int = 64) -> int:
    return -(-int(slots) // multiple) * multiple
