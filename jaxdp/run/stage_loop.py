# SPDX-License-Identifier: Apache-2.0
"""The steps of a run's stages, and what has to happen between them; also of several at once."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdp import dp
from jaxdp.config import Config
from jaxdp.evaluation.metrics import classification_metrics
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.pretrained import LoadReport
from jaxdp.training.frozen_layers import FrozenLayers, mean_feature
from jaxdp.training.members import share_frozen
from jaxdp.training.mesh import make_mesh
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import Inputs, build_model, cache_folder, token_buckets
from jaxdp.training.stages import RunPlan
from jaxdp.training.step import TrainState
from jaxdp.training.trainer import StageMember, StageTrainer

from . import processes
from .checkpoint import Checkpoints, Position
from .directory import RunDirectory
from .monitor import Monitor, SilentMonitor


class Interrupted(Exception):
    """Training was asked to stop; everything up to `position` is saved."""

    def __init__(self, position: Position, epsilon: float | None):
        self.position = position
        self.epsilon = epsilon
        super().__init__(position)


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """One run that a program trains, alone or as a member of a sweep.

    Attributes:
        config, plan: of the run; members differ in numbers alone.
        secret: where its randomness comes from.
        directory: None on every process but the first.
        monitor: told what happens to it.
    """

    config: Config
    plan: RunPlan
    secret: RunSecret
    directory: RunDirectory | None
    monitor: Monitor | SilentMonitor

    def epsilon(self, done: Position) -> float | None:
        """Of the steps taken so far; None without privacy."""
        mechanisms = self.plan.mechanisms(done.stage, done.step)
        if not mechanisms:
            return None
        return _epsilon(tuple(mechanisms.values()), self.config.privacy.delta)


@functools.lru_cache(maxsize=64)
def _epsilon(mechanisms: tuple[dp.SubsampledGaussian, ...], delta: float) -> float:
    """Members that differ in their seeds ask for the same."""
    return dp.epsilon_pld(list(mechanisms), delta)


def train_stages(
    runs: Sequence[Run],
    inputs: Inputs,
    checkpoints: Checkpoints | None,
    stop: processes.SharedInterrupt,
    start: Callable[[], None],
) -> tuple[list[ReportClassifier], LoadReport]:
    """Trains one run, or several as one program, from the beginning or from the newest checkpoint.

    Args:
        runs: what to train; with several, checkpoints hold the states of all.
        inputs: that all read.
        checkpoints: on the first process.
        stop: asked between steps.
        start: called on the first process once it is known that everything can be used, and before
            anything is done with the reports.

    Returns:
        The trained models, and how they were loaded.

    Raises:
        Interrupted, FloatingPointError, DamagedCheckpoint: see `train.train`.
        CannotShare: see `members.share_frozen`.
    """
    config, plan = runs[0].config, runs[0].plan
    saved = processes.latest(checkpoints)
    position = saved or Position(0, 0)
    # A public start and frozen layers may take minutes, and leave nothing half done.
    with stop.raising(lambda: _interrupted(runs, saved)):
        models, weights = processes.on_all(lambda: _build(runs, inputs))
        for run, model in zip(runs, models, strict=True):
            run.monitor.built(model, weights, config.train.trained)
        processes.first(start)
        frozen_layers = _frozen_layers(runs[0], models[0], inputs)
    secure = config.privacy.secure_noise
    centers: list[Any] = [0.0] * len(runs)
    if config.centering.l2_clip_norm is not None:
        features = frozen_layers.at(models[0].feature_level)["train"]
        released = [
            mean_feature(
                features, inputs.units, run.plan.centering, run.secret, secure_noise=secure
            )
            for run in runs
        ]
        centers = processes.from_first(released)
    for index in range(position.stage, len(plan.stages)):
        first, *others = [
            StageMember(run.plan.stages[index], model, run.secret, center)
            for run, model, center in zip(runs, models, centers, strict=True)
        ]
        trainer = StageTrainer(
            first.stage,
            first.model,
            frozen_layers=frozen_layers,
            labels=inputs.labels,
            units=inputs.units,
            secret=first.secret,
            token_buckets=token_buckets(config, len(runs)),
            center=first.center,
            secure_noise=secure,
            mesh=make_mesh(config.run.devices, len(runs)),
            shard_frozen=config.model.shard_frozen,
            others=others,
        )
        begin = position if index == position.stage else Position(index, 0)
        if begin == saved:
            state = processes.restore(checkpoints, begin, trainer.initial_state)
        else:
            state = trainer.initial_state
            processes.first(lambda begin=begin, state=state: checkpoints.save(begin, state))
        loop = _StageLoop(runs, inputs, trainer, checkpoints, stop)
        with contextlib.ExitStack() as showing:
            for run in runs:
                showing.enter_context(run.monitor.stage(run.directory, run.plan.stages, begin))
            trainer.install(loop.run(begin, state))
    for run, model in zip(runs, models, strict=True):
        model.fold_basis()
        model.divide_logits(run.config.train.temperature)
    return models, weights


def _build(runs: Sequence[Run], inputs: Inputs) -> tuple[list[ReportClassifier], LoadReport]:
    models = []
    for run in runs:
        if models and run.config.warm_start.phrasebook is not None:
            # A public start takes its time, and members do not differ in it.
            model = nnx.clone(models[0])
        else:
            model, weights = build_model(
                run.config,
                inputs.backbone,
                inputs.dataset.label_names,
                run.secret,
                run.monitor.public_start,
            )
        models.append(model)
        share_frozen(models[0], model)
    return models, weights


def _frozen_layers(run: Run, model: ReportClassifier, inputs: Inputs) -> FrozenLayers:
    """With every level that the stages start from."""
    config = run.config
    frozen_layers = FrozenLayers(
        model,
        {split: tokens for split, tokens in inputs.tokens.items() if split != "test"},
        token_buckets(config),
        cache_folder(config),
        make_mesh(config.run.devices),
        run.monitor.frozen_layers,
    )
    # From the lowest level up, so that each is made from the one before.
    for level in sorted(
        model.start_level(lora.split(model, stage.mode)[1]) for stage in run.plan.stages
    ):
        frozen_layers.at(level)
    return frozen_layers


def _interrupted(runs: Sequence[Run], saved: Position | None) -> Interrupted:
    """To be raised where everything up to `saved` is on disk; of a run alone it says the cost."""
    epsilon = runs[0].epsilon(saved) if saved is not None and len(runs) == 1 else None
    return Interrupted(saved or Position(0, 0), epsilon)


@dataclasses.dataclass(frozen=True)
class _StageLoop:
    """The steps of one stage, with what has to happen between them."""

    runs: Sequence[Run]
    inputs: Inputs
    trainer: StageTrainer
    checkpoints: Checkpoints | None
    stop: processes.SharedInterrupt

    def run(self, position: Position, state: TrainState) -> TrainState:
        stage, every = self.trainer.stage, self.runs[0].config.run
        if position.step and self._due(position.step):
            # It is saved; whether it was also shown before a kill is not known.
            self._show(position, self._evaluate(position, state))
        unread = None
        for step in range(position.step, stage.steps):
            plan = self.trainer.plan(step)
            state, diagnostics = self.trainer.step(state, step, plan)
            # Reading what the device has computed waits for it: read one step late.
            if unread:
                self._stepped(*unread)
            done = Position(position.stage, step + 1)
            unread = (done, diagnostics, *self.trainer.describe(plan))
            last = step + 1 == stage.steps
            stop = self.stop.received()
            evaluate = stop or self._due(step + 1)
            if evaluate or (step + 1) % every.checkpoint_every == 0:
                self._require_finite(state.adapters, done)
                if evaluate:
                    self._stepped(*unread)
                    unread = None
                    metrics = self._evaluate(done, state)
                # Saved before it is shown: what people have seen is never taken back by a crash, so
                # a run that is given up has released no more than its newest checkpoint.
                processes.first(lambda done=done, state=state: self.checkpoints.save(done, state))
            if evaluate:
                self._show(done, metrics)
            if stop and not last:
                raise _interrupted(self.runs, done)
        return state

    def _due(self, step: int) -> bool:
        """Whether there is an evaluation after so many steps."""
        every = self.runs[0].config.run.eval_every
        return step == self.trainer.stage.steps or step % every == 0

    def _show(self, done: Position, metrics: list[dict[str, Any]]) -> None:
        if not metrics:
            return
        for run, own in zip(self.runs, metrics, strict=True):
            run.monitor.evaluated(done, own, run.epsilon(done))

    def _stepped(self, done: Position, diagnostics, reports: int, fill: float) -> None:
        read = jax.tree.map(np.asarray, diagnostics)
        for run, own in zip(self.runs, self.trainer.each(read), strict=True):
            run.monitor.stepped(done, own, reports, fill)

    def _evaluate(self, done: Position, state: TrainState) -> list[dict[str, Any]]:
        """Each run's metrics on the validation split; none at all where there is none."""
        if "validation" not in self.inputs.tokens:
            return []
        probabilities = self.trainer.validation_probabilities(state)
        self._require_finite(probabilities, done)
        return [
            classification_metrics(
                own,
                self.inputs.labels["validation"],
                self.inputs.dataset.label_names,
                run.config.data.task,
            )
            for run, own in zip(self.runs, self.trainer.each(probabilities), strict=True)
        ]

    def _require_finite(self, values: Any, done: Position) -> None:
        """Of adapters, or of what they predict: after the noise, so that stopping tells nothing."""
        for run, own in zip(self.runs, self.trainer.each(values), strict=True):
            if not all(bool(jnp.isfinite(array).all()) for array in jax.tree.leaves(own)):
                raise FloatingPointError(
                    f"{run.config.run.name}: the adapter is no longer usable after step "
                    f"{done.step}: it holds or predicts numbers that are not finite; lower the "
                    "learning rate (this state was not saved)"
                )
