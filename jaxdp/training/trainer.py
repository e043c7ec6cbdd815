# SPDX-License-Identifier: Apache-2.0
"""One stage, ready to step: compiled function, data on the device, sampler, state."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdp import dp
from jaxdp.data.batching import Buckets, Plan
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import Predictor, packed_logits, shaped
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.layers import several
from jaxdp.models.tasks import TASKS

from .frozen_layers import FrozenLayers
from .members import member_specs, stack, stack_differing, unstack
from .mesh import MEMBER, WHOLE, frozen_specs, place
from .randomness import RunSecret
from .stages import Stage, make_optimizer
from .step import LabelledData, TrainState, make_train_step, plain_gradient_sum


@dataclasses.dataclass(frozen=True, repr=False)
class StageMember:
    """What is a run's own in a stage: one that is alone, or a member of a sweep."""

    stage: Stage
    model: ReportClassifier  # copied; `StageTrainer.install` writes what was trained back
    secret: RunSecret  # gives this stage's sampling seed and noise key
    center: np.ndarray | float = 0.0
    """Like a feature, released; or 0. The head is trained on features from which it was taken: the
    same functions, better conditioned. `install` writes an ordinary head."""


class StageTrainer:
    """Runs the steps of one stage.

    Whatever no trainable parameter of the stage influences is computed once, here: token ids become
    hidden states, or features, and the steps start from those (same gradients, same guarantee).

    Members of a sweep are trained in one program, each as it would be alone, up to the rounding of
    sums: then every leaf of a state has a leading axis of members, and so has what is predicted.

    Args:
        members: one or more; of several, samples are the same and models by `members.share_frozen`.
        frozen_layers: gives the reports at the level where the stage starts.
        labels: split -> [n, num_labels].
        token_buckets: microbatch shapes for whole reports; those for features follow from them.
        secure_noise: noise from `dp.SecureNoise`.
        mesh: devices to share the work; None is the default device alone.
        shard_frozen: share the frozen weights out over the mesh, too.

    Raises:
        ValueError: members do not differ in numbers alone, or ask for secure noise.
    """

    def __init__(
        self,
        members: Sequence[StageMember],
        *,
        frozen_layers: FrozenLayers,
        labels: dict[str, np.ndarray],
        units: PrivacyUnits,
        token_buckets: Buckets,
        secure_noise: bool = False,
        mesh: Mesh | None = None,
        shard_frozen: bool = False,
    ):
        _require_one_program(members, secure_noise)
        # What members share is read from the first.
        stage, model, secret = members[0].stage, members[0].model, members[0].secret
        self.stage, self._members = stage, members
        (graphdef, *_), adapters, frozen = zip(
            *(lora.split(each.model, stage.mode) for each in members), strict=True
        )
        # Copies: the step donates its state, and the models keep their own parameters.
        adapters = [
            _shift_head(jax.tree.map(jnp.copy, own), each.center)
            for own, each in zip(adapters, members, strict=True)
        ]
        self.level = model.start_level(adapters[0])
        at_feature = self.level == model.feature_level
        self.buckets = token_buckets.for_features() if at_feature else token_buckets
        reports = frozen_layers.at(self.level)
        train, self._validation = reports["train"], reports.get("validation")
        self._lengths = train.lengths

        self._units = units
        mechanism, batch = stage.mechanism, stage.settings.expected_batch_size
        self._sampler = dp.PoissonSampler(
            secret.sampling_seed(stage.name),
            mechanism.sampling_probability if mechanism else min(batch / units.num_units, 1.0),
            units.num_units,
        )
        # A draw beyond this happens less than once in 10^15 steps, and only costs a compilation.
        draw = min(batch + 8 * math.sqrt(batch), units.num_units)
        self._capacity = -(-self.buckets.capacity(int(draw)) // 64) * 64

        gradient_sum = plain_gradient_sum
        if mechanism:
            one_gradient = _head_value_and_grad if at_feature else gradient_by(self.buckets)
            gradient_sum = partial(dp.clipped_gradient_sum, value_and_grad=one_gradient)
        optimizers = [_optimizer(each, adapters[0], secure_noise) for each in members]
        # What members differ in is in the state, so the update of one is that of all.
        optimizer, self._draw = optimizers[0]
        state = [
            TrainState(own, each.init(own))
            for own, (each, _) in zip(adapters, optimizers, strict=True)
        ]
        # Arguments of the compiled step, not constants in it: its program is cached on disk.
        center = [jnp.float32(each.center) for each in members]
        nothing = jnp.float32(0.0)  # is taken later, where it was taken from the data
        frozen = [
            (own, nothing if at_feature else each) for own, each in zip(frozen, center, strict=True)
        ]
        mechanisms = (each.stage.mechanism for each in members)
        bound = [jnp.float32(own.l2_clip_norm if own else math.inf) for own in mechanisms]
        specs = frozen_specs(frozen[0], mesh if shard_frozen else None)
        loss = report_loss(graphdef, self.level)
        step = make_train_step(loss, gradient_sum, optimizer, self.buckets, mesh, specs)
        several = len(members) > 1
        state, center, bound = (stack(x) if several else x[0] for x in (state, center, bound))
        frozen, axes = stack_differing(frozen)
        spec, specs, predicting = WHOLE, member_specs(specs, axes), None
        if several:
            spec, predicting = P(MEMBER), (0, axes[0], 0)
            data_axes = LabelledData(None, None, 0 if at_feature else None)
            step = jax.vmap(step, (0, axes, data_axes, None, 0), spmd_axis_name=MEMBER)
        frozen = (lora.rounded_once(model, frozen[0]), frozen[1])
        sharding = mesh and NamedSharding(mesh, spec)
        self._step = jax.jit(step, donate_argnums=0, out_shardings=sharding)
        self.initial_state = place(state, mesh, spec)
        self._frozen = place(frozen, mesh, specs, read_only=True)
        self._center, self._bound = place((center, bound), mesh, spec)
        data = place(LabelledData(train, labels["train"]), mesh, read_only=True)
        self._data = data._replace(center=self._center) if at_feature else data
        self._predict = Predictor(graphdef, self.level, self.buckets, mesh, predicting)

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
        arguments, release = self._arguments(state, step, plan)
        return self._step(*arguments, **release)

    def after(self, steps: int) -> TrainState:
        """The state after so many steps from the initial one, which they use up."""
        state = self.initial_state
        for step in range(steps):
            state, _ = self.step(state, step, self.plan(step))
        return state

    def lower(self, device: jax.Device) -> jax.stages.Lowered:
        """The step without a mesh, lowered for a device of any kind, which need not be here."""
        arguments, release = shaped(self._arguments(self.initial_state, 0, self.plan(0)), device)
        return self._step.lower(*arguments, **release)

    def _arguments(self, state: TrainState, step: int, plan: Plan) -> tuple[tuple, dict[str, Any]]:
        return (state, self._frozen, self._data, plan, self._bound), self._draw(step)

    def describe(
        self, plan: Plan, diagnostics: dp.ClipDiagnostics
    ) -> tuple[dp.ClipDiagnostics, int, float]:
        """(a step's diagnostics [reports] without empty places, of members with their axis before;
        reports that take part; share of the computed positions that are real)."""
        taken = plan.rows >= 0
        real = self._lengths[plan.rows[taken]].sum()
        read = jax.tree.map(lambda x: np.asarray(x)[..., taken], diagnostics)
        return read, int(taken.sum()), float(real / max(self.buckets.positions(plan), 1))

    def validation_probabilities(self, state: TrainState) -> np.ndarray:
        """[n, num_labels] for the validation split; of members [members, n, num_labels]."""
        return self._predict(state.adapters, self._frozen[0], self._validation, self._center)

    def each(self, tree: Any) -> list[Any]:
        """Each member's own of a state, or of what follows from one; of a single run, the tree."""
        members = len(self._members)
        return [tree] if members == 1 else unstack(tree, members)

    def install(self, state: TrainState) -> None:
        """Writes the trained parameters into the models."""
        trained = self.each(jax.device_get(state.adapters))
        for member, own in zip(self._members, trained, strict=True):
            adapters = jax.tree.map(jnp.asarray, own)
            nnx.update(member.model, _shift_head(adapters, -member.center))


def _require_one_program(members: Sequence[StageMember], secure_noise: bool) -> None:
    def shared(each: StageMember):
        stage, mechanism = each.stage, each.stage.mechanism
        settings, seed = stage.settings, each.secret.sampling_seed(stage.name)
        return (
            (stage.name, stage.mode, settings.optimizer, settings.schedule, seed, settings.steps),
            settings.expected_batch_size,
            mechanism and (mechanism.units, mechanism.expected_batch_size),
        )

    if len(members) > 1 and (secure_noise or len(set(map(shared, members))) > 1):
        raise ValueError("members of one program must share samples, and differ in numbers alone")


def report_loss(graphdef: nnx.GraphDef, level: int) -> Callable[..., jax.Array]:
    """(adapters, (frozen, center), values, length, labels) -> loss of a report given at `level`; or
    of the K reports of a row [K], of lengths [K], for which adapters may have an axis of reports,
    each report's own."""

    def loss(adapters, frozen, values, length, labels):
        frozen, center = frozen
        merged = nnx.merge(graphdef, adapters, frozen)
        task = TASKS[merged.task]
        if not several(length):
            logits = packed_logits(merged, values, length, level, center)
            return task.loss(logits, labels)

        def one(states, real, labels, adapters=adapters):
            model = nnx.merge(graphdef, adapters, frozen)
            logits = model.logits(model.feature(states, real) - center)
            return task.loss(logits, labels)

        own = (adapters,) if merged.classifier.bias.ndim > 1 else ()
        with merged.precise():
            states = merged.last_states(values, length, level)
            return merged.by_report(one, states, length, labels, *own)

    return loss


def gradient_by(buckets: Buckets) -> Callable:
    """`jax.value_and_grad`, for reports alone in their rows or for those that share them."""
    return _row_value_and_grad if buckets.reports else jax.value_and_grad


def _row_value_and_grad(loss_fn):
    """`jax.value_and_grad` for the reports of a row: losses [K], and of every leaf [K, ...] each
    report's gradient, which is that of adapters of its own."""

    def value_and_grad(adapters, values, lengths, *row):
        own = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(lengths), *x.shape)), adapters)

        def total(own):
            losses = loss_fn(own, values, lengths, *row)
            # An empty place stands on its neighbour, to whose gradient it must not add.
            return jnp.sum(losses, where=lengths > 0), losses

        (_, losses), gradients = jax.value_and_grad(total, has_aux=True)(own)
        return losses, gradients

    return value_and_grad


def _optimizer(
    member: StageMember, like: Any, secure_noise: bool
) -> tuple[optax.GradientTransformation, Callable[[int], dict[str, Any]]]:
    """Release and update, and step -> what the release needs besides the sum."""
    stage = member.stage
    release, draw = optax.scale(1 / stage.settings.expected_batch_size), lambda step: {}
    if stage.mechanism:
        like = jax.eval_shape(lambda: like)
        release, draw = member.secret.release(
            stage.mechanism, stage.name, like, secure=secure_noise
        )
    return optax.chain(release, make_optimizer(stage.settings)), draw


def _shift_head(adapters: nnx.State, center: np.ndarray | float) -> nnx.State:
    """The adapters whose head gives the same logits on features from which `center` was taken."""
    head = adapters["classifier"]
    # Of a linear head on one feature [H], and of one with a feature for each label.
    shift = jnp.sum(center * head["kernel"][...].T, axis=-1)
    head["bias"][...] = head["bias"][...] + shift
    return adapters


def _head_value_and_grad(loss_fn):
    """`jax.value_and_grad` of a head on features: a linear layer, whose kernel's gradient is a
    product of the feature, or of each label's own, and the bias' gradient."""

    def value_and_grad(head, feature, *report):
        bias, kernel = jax.tree.leaves(head)
        structure = jax.tree.structure(head)

        def loss(bias):
            return loss_fn(jax.tree.unflatten(structure, [bias, kernel]), feature, *report)

        value, gradient = jax.value_and_grad(loss)(bias)
        products = dp.OuterProducts if feature[0].ndim == 1 else dp.ColumnProducts
        return value, jax.tree.unflatten(structure, [gradient, products(feature[0], gradient)])

    return value_and_grad
