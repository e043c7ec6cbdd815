# SPDX-License-Identifier: Apache-2.0
"""A whole run, in order: plan, load, train stage by stage, evaluate, release."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdp.config import Config
from jaxdp.data.dataset import ReportDataset
from jaxdp.evaluation.metrics import classification_metrics
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.pretrained import LoadReport
from jaxdp.training.frozen_layers import FrozenLayers, mean_feature
from jaxdp.training.members import share_frozen
from jaxdp.training.mesh import make_mesh
from jaxdp.training.setup import (
    Inputs,
    build_model,
    cache_folder,
    load_inputs,
    test_probabilities,
    token_buckets,
)
from jaxdp.training.stages import plan_run
from jaxdp.training.step import TrainState
from jaxdp.training.trainer import StageMember, StageTrainer

from . import processes
from .begin import Run, begin, open_directory, require_same_inputs, shared_secret, tell_patients
from .checkpoint import Checkpoints, DamagedCheckpoint, Position
from .directory import RunError
from .finish import finish
from .interrupt import Interrupt
from .monitor import Monitor, SilentMonitor


class Interrupted(Exception):
    """Training was asked to stop; everything up to `position` is saved."""

    def __init__(self, position: Position, epsilon: float | None):
        self.position = position
        self.epsilon = epsilon
        super().__init__(position)


def train(
    config: Config,
    *,
    resume: bool,
    interrupt: Interrupt,
    monitor: Monitor | SilentMonitor,
    sampling_root: bytes | None = None,
    dataset: ReportDataset | None = None,
) -> dict[str, Any]:
    """Runs the configuration to the end and writes the run directory (design: release contract).

    Guarantee: what `release/` holds is the output of exactly the mechanisms in its statement. A run
    that was stopped anywhere, even by SIGKILL, continues with the same units and noise, and ends
    with the same adapter, bit for bit on the same machines and versions. Several processes train
    together, see `processes`.

    Args:
        resume: continue a run that has started.
        interrupt: asked between steps.
        sampling_root: for a member of a sweep that shares its samples, see `RunSecret`.
        dataset: reports that are in memory already, instead of those that config.data names. It may
            lack a validation or a test split, and then nothing is evaluated there.

    Returns:
        The statement ("privacy") and the test metrics ("metrics"), whose "test" is None without a
        test split.

    Raises:
        ConfigError, DataError, WeightsError, RunError, LedgerError: input that cannot be used, or a
            run that would overdraw its budget.
        Interrupted: stopped by a signal, saved.
        FloatingPointError: the adapter is no longer finite.
    """
    (result,) = _train(
        [config], [monitor], interrupt, sampling_root, resume=resume, dataset=dataset
    )
    return result


def train_members(
    configs: Sequence[Config],
    *,
    folder: Path,
    interrupt: Interrupt,
    monitors: Sequence[Monitor | SilentMonitor],
    sampling_root: bytes,
) -> None:
    """Trains members of a group in one program, and finishes those that are not yet; each ends with
    the run directory that it would have alone.

    Guarantee: each is trained by exactly the mechanisms that `train` would use, with its own secret
    and the group's samples, and ends with the same adapter up to the rounding of sums. One that was
    finished takes part, and nothing of it is written again. What was stopped anywhere, even by
    SIGKILL, continues with the same units and noise.

    Args:
        configs: the members', which differ in numbers alone: all of them, also when some are
            finished, and in the same order as before. All private, or none; no secure noise.
        folder: for the checkpoints, each of all members, or of none; private.
        sampling_root: of the group, see `RunSecret`.

    Raises:
        CannotShare: see `members.share_frozen`; nothing was done with the reports.
        Others: see `train`.
    """
    if jax.process_count() > 1:
        raise RunError("members are trained together by one process")
    _train(configs, monitors, interrupt, sampling_root, resume=True, folder=folder)


def _train(
    configs: Sequence[Config],
    monitors: Sequence[Monitor | SilentMonitor],
    interrupt: Interrupt,
    sampling_root: bytes | None,
    *,
    resume: bool,
    folder: Path | None = None,
    dataset: ReportDataset | None = None,
) -> list[dict[str, Any]]:
    """One run, or with a `folder` for the checkpoints of all those of several; what `train` gives
    back, of each that was not finished."""
    config = configs[0]
    plans = [plan_run(each) for each in configs]
    mesh = make_mesh(config.run.devices, len(configs))
    for each, plan, monitor in zip(configs, plans, monitors, strict=True):
        monitor.planned(each, plan)
    with contextlib.ExitStack() as held:
        together = folder is not None
        directories = processes.first(
            lambda: [
                open_directory(each, held, resume=resume, finished_too=together) for each in configs
            ]
        ) or [None] * len(configs)
        inputs = processes.on_all(lambda: load_inputs(config, dataset))
        require_same_inputs(config, plans[0], inputs)
        runs = []
        for each, plan, directory, monitor in zip(
            configs, plans, directories, monitors, strict=True
        ):
            monitor.loaded(each, inputs)
            secret = shared_secret(directory, inputs, sampling_root)
            runs.append(Run(each, plan, secret, directory, monitor))
            tell_patients(runs[-1], inputs)
        states = folder or (directories[0] and directories[0].checkpoints)
        checkpoints = Checkpoints(states, config.run.keep_checkpoints)
        if together and checkpoints.furthest() is not None:
            for directory in directories:
                directory.require_started()
        stop = processes.SharedInterrupt(interrupt, mesh)
        while True:
            try:
                models, weights = train_stages(runs, inputs, checkpoints, stop)
                break
            except DamagedCheckpoint as damage:
                # The one before, or none at all, leads to the same result.
                checkpoints.set_aside(damage.position)
                for monitor in monitors:
                    monitor.set_aside(damage)
        predicted = [None] * len(runs)
        if "test" in inputs.tokens:
            predicted = test_probabilities(
                config, models, inputs, mesh, monitors[0].watch("test split")
            )
        return [
            finish(run, inputs, model, weights.initialised, probabilities)
            for run, model, probabilities in zip(runs, models, predicted, strict=True)
            if run.directory is None or not run.directory.finished
        ]


def train_stages(
    runs: Sequence[Run],
    inputs: Inputs,
    checkpoints: Checkpoints,
    stop: processes.SharedInterrupt,
) -> tuple[list[ReportClassifier], LoadReport]:
    """Trains one run, or several as one program, from the beginning or from the newest checkpoint.

    Runs `begin` once it is known that everything can be used, and before anything is done with the
    reports.

    Returns:
        The trained models, and how they were loaded.

    Raises:
        DamagedCheckpoint: of the newest one.
        Interrupted, FloatingPointError: see `train`.
        CannotShare: see `members.share_frozen`.
    """
    config, plan = runs[0].config, runs[0].plan
    saved = checkpoints.latest()
    position = saved or Position(0, 0)
    # A public start and frozen layers may take minutes, and leave nothing half done.
    with stop.raising(lambda: _interrupted(runs, saved)):
        models, weights = processes.on_all(lambda: _build(runs, inputs))
        for run, model in zip(runs, models, strict=True):
            run.monitor.built(model, weights, config.train.trained)
        processes.first(lambda: [begin(run, inputs) for run in runs])
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
        members = [
            StageMember(run.plan.stages[index], model, run.secret, center)
            for run, model, center in zip(runs, models, centers, strict=True)
        ]
        trainer = StageTrainer(
            members,
            frozen_layers=frozen_layers,
            labels=inputs.labels,
            units=inputs.units,
            token_buckets=token_buckets(config, inputs.lengths, len(runs)),
            secure_noise=secure,
            mesh=make_mesh(config.run.devices, len(runs)),
            shard_frozen=config.model.shard_frozen,
        )
        start = position if index == position.stage else Position(index, 0)
        if start == saved:
            state = checkpoints.restore(start, trainer.initial_state)
        else:
            state = trainer.initial_state
            checkpoints.save(start, state)
        loop = _StageLoop(runs, inputs, trainer, checkpoints, stop)
        with contextlib.ExitStack() as showing:
            for run in runs:
                showing.enter_context(run.monitor.stage(run.directory, run.plan.stages, start))
            trainer.install(loop.run(start, state))
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
                run.monitor.watch("public start"),
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
        token_buckets(config, inputs.lengths),
        cache_folder(config),
        make_mesh(config.run.devices),
        run.monitor.watch("frozen layers"),
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
    checkpoints: Checkpoints
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
                self.checkpoints.save(done, state)
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
