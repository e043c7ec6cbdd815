# SPDX-License-Identifier: Apache-2.0
"""A whole run, in order: plan, load, train stage by stage, evaluate, release."""

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxdp import dp
from jaxdp.config import Config
from jaxdp.evaluation.metrics import classification_metrics
from jaxdp.evaluation.predictions import TestPredictions
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.pretrained import LoadReport

from . import processes
from .checkpoint import Checkpoints, DamagedCheckpoint, Position
from .interrupt import Interrupt
from .mesh import make_mesh
from .monitor import Monitor, SilentMonitor
from .patients import patient_epsilons
from .prefix import FrozenPrefix, mean_feature
from .randomness import RunSecret, noise_generator, seed_policy
from .release import write_release
from .rundir import RunDirectory, RunError, write_json, write_whole
from .setup import Inputs, build_model, cache_folder, load_inputs, test_probabilities, token_buckets
from .stages import RunPlan, plan_run
from .step import TrainState
from .trainer import StageTrainer

NOT_COVERED = (
    "computed on held-out reports and not covered by the privacy guarantee; publish it only if "
    "those reports are public"
)


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
) -> dict[str, Any]:
    """Runs the configuration to the end and writes the run directory (design: release contract).

    Guarantee: what `release/` holds is the output of exactly the mechanisms in its statement. A run
    that was stopped anywhere, even by SIGKILL, continues with the same units and noise, and ends
    with the same adapter, bit for bit on the same machines and versions. Several processes train
    together, see `processes`.

    Args:
        config: of the run.
        resume: continue a run that has started.
        interrupt: asked between steps.
        monitor: told what happens.
        sampling_root: for a member of a sweep that shares its samples, see `RunSecret`.

    Returns:
        The statement ("privacy") and the test metrics ("metrics").

    Raises:
        ConfigError, DataError, WeightsError, RunError, LedgerError: input that cannot be used, or a
            run that would overdraw its budget.
        Interrupted: stopped by a signal, saved.
        FloatingPointError: the adapter is no longer finite.
    """
    plan = plan_run(config)
    mesh = make_mesh(config.run.devices)
    monitor.planned(config, plan)
    run = processes.first(lambda: _open(config, resume))
    try:
        inputs = processes.together(lambda: load_inputs(config))
        _require_same_inputs(config, plan, inputs)
        monitor.loaded(inputs)
        if patients := patient_epsilons(config, plan, inputs):
            processes.first(lambda: write_json(run.private / "patients.json", patients))
            monitor.patients(patients)
        secret = _secret(run, inputs, sampling_root)
        checkpoints = processes.first(
            lambda: Checkpoints(run.checkpoints, config.run.keep_checkpoints)
        )
        stop = processes.SharedInterrupt(interrupt, mesh)
        training = (config, plan, inputs, secret, checkpoints, run, stop, monitor, mesh)
        while True:
            try:
                model, weights = _train_stages(*training)
                break
            except DamagedCheckpoint as damage:
                # The one before, or none at all, leads to the same result.
                processes.first(lambda damage=damage: checkpoints.set_aside(damage.position))
                monitor.set_aside(damage)

        statement = dp.privacy_statement(
            plan.mechanisms(),
            delta=config.privacy.delta,
            privacy_unit=config.privacy.unit,
            seed_policy=seed_policy(config.run.research_seed),
            noise_generator=noise_generator(config.privacy.secure_noise),
            label_origin=inputs.dataset.label_origin,
            max_reports_per_patient=config.privacy.max_reports_per_patient,
        )
        processes.first(
            lambda: write_release(
                run.release,
                model,
                config.train.mode,
                backbone=inputs.backbone,
                label_names=inputs.dataset.label_names,
                max_length=config.data.max_length,
                initialised=weights.initialised,
                statement=statement,
            )
        )
        predictions = TestPredictions.of(
            inputs.dataset, test_probabilities(config, model, inputs, mesh), config.privacy.unit
        )
        metrics = {"note": NOT_COVERED, "test": predictions.metrics()}
        processes.first(lambda: _write_results(run, predictions, metrics))
        monitor.finished(run, statement, metrics["test"])
        return {"privacy": statement, "metrics": metrics}
    finally:
        if run is not None:
            run.close()


def _open(config: Config, resume: bool) -> RunDirectory:
    """The run's directory, if there is something left to do in it."""
    run = RunDirectory(config, resume=resume)
    if run.finished:
        run.close()
        raise RunError(f"{run.path} is finished already; its results are in {run.release}")
    return run


def _write_results(run: RunDirectory, predictions: TestPredictions, metrics: dict) -> None:
    write_whole(run.private / "test_predictions.npz", predictions.to_bytes())
    write_json(run.path / "metrics.json", metrics)


def _secret(run: RunDirectory | None, inputs: Inputs, sampling_root: bytes | None) -> RunSecret:
    """Of process 0, on every process: one run has one secret."""
    grouping = (inputs.units.members.tobytes(), inputs.units.offsets.tobytes())
    records = itertools.chain(inputs.training_records(), grouping)
    own = processes.first(lambda: run.secret(records, sampling_root))
    roots = (bytes(32), bytes(32)) if own is None else (own.root, own.sampling_root or own.root)
    shared = processes.from_first([np.frombuffer(root, np.uint8) for root in roots])
    return RunSecret(*(root.tobytes() for root in shared))


def _require_same_inputs(config: Config, plan: RunPlan, inputs: Inputs) -> None:
    """RunError unless all processes train the same way on the same; paths may differ."""
    settings = dataclasses.replace(
        config, data=dataclasses.replace(config.data, root=None, cache=None)
    )
    weights = inputs.backbone.directory.glob("*.safetensors")
    rows = [*inputs.tokens.values(), *inputs.labels.values()]
    processes.require_same(
        {
            "settings": [repr((settings, plan)).encode()],
            "reports": (np.asarray(x).tobytes() for x in jax.tree.leaves(rows)),
            "privacy units": [inputs.units.members.tobytes(), inputs.units.offsets.tobytes()],
            "frozen weights": (file.read_bytes() for file in sorted(weights)),
        }
    )


def _train_stages(
    config: Config,
    plan: RunPlan,
    inputs: Inputs,
    secret: RunSecret,
    checkpoints: Checkpoints | None,
    run: RunDirectory | None,
    stop: processes.SharedInterrupt,
    monitor: Monitor | SilentMonitor,
    mesh: Mesh,
) -> tuple[ReportClassifier, LoadReport]:
    """The trained model, from the beginning or from the newest checkpoint; how it was loaded."""
    saved = processes.latest(checkpoints)
    position = saved or Position(0, 0)
    model, weights = processes.together(
        lambda: build_model(config, inputs.backbone, inputs.num_labels, secret)
    )
    monitor.built(model, weights, config.train.mode)
    processes.first(lambda: _begin(config, plan, inputs, secret, run))
    buckets = token_buckets(config)
    used = {split: inputs.tokens[split] for split in ("train", "validation")}
    # Processes could disagree on what a folder holds, so several keep nothing in it.
    folder = cache_folder(config) if jax.process_count() == 1 else None
    prefix = FrozenPrefix(model, used, buckets, folder, mesh)
    # From the lowest level up, so that each is made from the one before.
    for level in sorted(model.start_level(lora.split(model, s.mode)[1]) for s in plan.stages):
        prefix.at(level)
    center, secure = 0.0, config.privacy.secure_noise
    if config.centering.l2_clip_norm is not None:
        features = prefix.at(model.feature_level)["train"]
        center = mean_feature(features, inputs.units, plan.centering, secret, secure_noise=secure)
        (center,) = processes.from_first([center])
    for index in range(position.stage, len(plan.stages)):
        trainer = StageTrainer(
            plan.stages[index],
            model,
            prefix=prefix,
            labels=inputs.labels,
            units=inputs.units,
            secret=secret,
            token_buckets=buckets,
            center=center,
            secure_noise=secure,
            mesh=mesh,
            shard_frozen=config.model.shard_frozen,
        )
        begin = position if index == position.stage else Position(index, 0)
        if begin == saved:
            state = processes.restore(checkpoints, begin, trainer.initial_state)
        else:
            state = trainer.initial_state
            processes.first(lambda begin=begin, state=state: checkpoints.save(begin, state))
        loop = _StageLoop(config, plan, inputs, trainer, checkpoints, stop, monitor)
        with monitor.stage(run, plan.stages, begin):
            trainer.install(loop.run(begin, state))
    return model, weights


def _begin(
    config: Config, plan: RunPlan, inputs: Inputs, secret: RunSecret, run: RunDirectory
) -> None:
    """Keeps the secret, and enters the run in the ledger, if there is one: nothing is done with
    the reports before."""
    new = run.start()
    privacy = config.privacy
    if privacy.ledger is None or not privacy.private:
        return
    ledger = dp.Ledger(Path(privacy.ledger))
    budget = None if privacy.total_budget is None else (privacy.total_budget, privacy.delta)
    try:
        ledger.plan(
            ledger.fingerprint(inputs.training_records()),
            secret.public_id(),
            plan.mechanisms(),
            total_budget=budget,
        )
    except dp.LedgerError:
        if new:
            run.unstart()
        raise


@dataclasses.dataclass(frozen=True)
class _StageLoop:
    """The steps of one stage, with what has to happen between them."""

    config: Config
    plan: RunPlan
    inputs: Inputs
    trainer: StageTrainer
    checkpoints: Checkpoints | None
    stop: processes.SharedInterrupt
    monitor: Monitor | SilentMonitor

    def run(self, position: Position, state: TrainState) -> TrainState:
        stage, every = self.trainer.stage, self.config.run
        unread = None
        for step in range(position.step, stage.steps):
            plan = self.trainer.plan(step)
            state, diagnostics = self.trainer.step(state, step, plan)
            # Reading what the device has computed waits for it: read one step late.
            if unread:
                self.monitor.stepped(*unread)
            done = Position(position.stage, step + 1)
            reports, fill = self.trainer.describe(plan)
            unread = (done, diagnostics, reports, fill)
            last = step + 1 == stage.steps
            stop = self.stop.received()
            evaluate = last or stop or (step + 1) % every.eval_every == 0
            if evaluate or (step + 1) % every.checkpoint_every == 0:
                _require_finite(jax.tree.leaves(state.adapters), done)
                if evaluate:
                    self.monitor.stepped(*unread)
                    unread = None
                    metrics = self._evaluate(done, state)
                # Saved before it is shown: what people have seen is never taken back by a crash, so
                # a run that is given up has released no more than its newest checkpoint.
                processes.first(lambda done=done, state=state: self.checkpoints.save(done, state))
            if evaluate:
                self.monitor.evaluated(done, metrics, self._epsilon(done))
            if stop and not last:
                raise Interrupted(done, self._epsilon(done))
        return state

    def _evaluate(self, done: Position, state: TrainState) -> dict[str, Any]:
        """Metrics on the validation split."""
        probabilities = self.trainer.validation_probabilities(state)
        _require_finite([probabilities], done)
        return classification_metrics(
            probabilities, self.inputs.labels["validation"], self.inputs.dataset.label_names
        )

    def _epsilon(self, done: Position) -> float | None:
        """Of the steps taken so far; None without privacy."""
        mechanisms = self.plan.mechanisms(done.stage, done.step)
        if not mechanisms:
            return None
        return dp.epsilon_pld(list(mechanisms.values()), self.config.privacy.delta)


def _require_finite(arrays: Iterable[jax.Array], done: Position) -> None:
    """Of adapters, or of what they predict: after the noise, so that stopping tells nothing."""
    if not all(bool(jnp.isfinite(array).all()) for array in arrays):
        raise FloatingPointError(
            f"the adapter is no longer usable after step {done.step}: it holds or predicts numbers "
            "that are not finite; lower the learning rate (this state was not saved)"
        )
