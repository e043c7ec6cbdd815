# SPDX-License-Identifier: Apache-2.0
"""A whole run, in order: plan, load, train stage by stage, evaluate, release."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxdp import dp
from jaxdp.config import Config
from jaxdp.evaluation.metrics import classification_metrics
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.pretrained import LoadReport

from .checkpoint import Checkpoints, Position
from .interrupt import Interrupt
from .monitor import Monitor
from .prefix import FrozenPrefix, mean_feature
from .randomness import RunSecret, seed_policy
from .release import write_release
from .rundir import RunDirectory, RunError, write_json
from .setup import Inputs, build_model, load_inputs, test_metrics, token_buckets
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
    config: Config, *, resume: bool, interrupt: Interrupt, monitor: Monitor
) -> dict[str, Any]:
    """Runs the configuration to the end and writes the run directory (design: release contract).

    Guarantee: what `release/` holds is the output of exactly the mechanisms in its statement. A run
    that was stopped anywhere, even by SIGKILL, continues with the same units and noise, and ends
    with the same adapter, bit for bit on the same machine and versions.

    Returns:
        The statement ("privacy") and the test metrics ("metrics").

    Raises:
        ConfigError, DataError, WeightsError, RunError, LedgerError: input that cannot be used, or a
            run that would overdraw its budget.
        Interrupted: stopped by a signal, saved.
        FloatingPointError: the adapter is no longer finite.
    """
    plan = plan_run(config)
    monitor.planned(config, plan)
    run = RunDirectory(config, resume=resume)
    try:
        if run.finished:
            raise RunError(f"{run.path} is finished already; its results are in {run.release}")
        inputs = load_inputs(config)
        monitor.loaded(inputs)
        checkpoints = Checkpoints(run.checkpoints, config.run.keep_checkpoints)
        try:
            model, weights = _train_stages(
                config, plan, inputs, checkpoints, run, interrupt, monitor
            )
        finally:
            checkpoints.close()

        statement = dp.privacy_statement(
            plan.mechanisms(),
            delta=config.privacy.delta,
            privacy_unit=config.privacy.unit,
            seed_policy=seed_policy(config.run.research_seed),
            label_origin=inputs.dataset.label_origin,
        )
        write_release(
            run.release,
            model,
            config.train.mode,
            backbone=inputs.backbone,
            label_names=inputs.dataset.label_names,
            max_length=config.data.max_length,
            initialised=weights.initialised,
            statement=statement,
        )
        metrics = {"note": NOT_COVERED, "test": test_metrics(config, model, inputs)}
        write_json(run.path / "metrics.json", metrics)
        monitor.finished(run, statement, metrics["test"])
        return {"privacy": statement, "metrics": metrics}
    finally:
        run.close()


def _train_stages(
    config: Config,
    plan: RunPlan,
    inputs: Inputs,
    checkpoints: Checkpoints,
    run: RunDirectory,
    interrupt: Interrupt,
    monitor: Monitor,
) -> tuple[ReportClassifier, LoadReport]:
    """The trained model, from the beginning or from the newest checkpoint; how it was loaded."""
    saved = checkpoints.latest()
    position, secret = saved or (Position(0, 0), RunSecret.create(config.run.research_seed))
    _record(config, plan, inputs, secret)
    model, weights = build_model(config, inputs.backbone, inputs.num_labels, secret)
    monitor.built(model, weights, config.train.mode)
    buckets = token_buckets(config)
    used = {split: inputs.tokens[split] for split in ("train", "validation")}
    prefix = FrozenPrefix(model, used, buckets)
    # From the lowest level up, so that each is made from the one before.
    for level in sorted(model.start_level(lora.split(model, s.mode)[1]) for s in plan.stages):
        prefix.at(level)
    center = 0.0
    if config.centering.l2_clip_norm is not None:
        features = prefix.at(model.feature_level)["train"]
        center = mean_feature(features, inputs.units, plan.centering, secret)
    for index in range(position.stage, len(plan.stages)):
        trainer = StageTrainer(
            plan.stages[index],
            model,
            prefix=prefix,
            labels=inputs.labels,
            units=inputs.units,
            secret=secret,
            token_buckets=buckets,
            feature_rows=config.train.microbatch_tokens,
            center=center,
        )
        begin = position if index == position.stage else Position(index, 0)
        if saved and begin == position:
            state = checkpoints.restore(position, trainer.initial_state)
        else:
            state = trainer.initial_state
            checkpoints.save(begin, state, secret)
        loop = _StageLoop(config, plan, inputs, trainer, checkpoints, secret, interrupt, monitor)
        with monitor.stage(run, plan.stages, begin):
            trainer.install(loop.run(begin, state))
    return model, weights


def _record(config: Config, plan: RunPlan, inputs: Inputs, secret: RunSecret) -> None:
    """Enters the run in the ledger, if there is one, before it touches the reports."""
    privacy = config.privacy
    if privacy.ledger is None or not privacy.private:
        return
    ledger = dp.Ledger(Path(privacy.ledger))
    budget = None if privacy.total_budget is None else (privacy.total_budget, privacy.delta)
    ledger.plan(
        ledger.fingerprint(inputs.training_records()),
        secret.public_id(),
        plan.mechanisms(),
        total_budget=budget,
    )


@dataclasses.dataclass(frozen=True)
class _StageLoop:
    """The steps of one stage, with what has to happen between them."""

    config: Config
    plan: RunPlan
    inputs: Inputs
    trainer: StageTrainer
    checkpoints: Checkpoints
    secret: RunSecret
    interrupt: Interrupt
    monitor: Monitor

    def run(self, position: Position, state: TrainState) -> TrainState:
        stage, every = self.trainer.stage, self.config.run
        unread = None
        for step in range(position.step, stage.steps):
            plan = self.trainer.plan(step)
            state, diagnostics = self.trainer.step(state, plan)
            # Reading what the device has computed waits for it: read one step late.
            if unread:
                self.monitor.stepped(*unread)
            done = Position(position.stage, step + 1)
            reports, fill = self.trainer.describe(plan)
            unread = (done, diagnostics, reports, fill)
            last = step + 1 == stage.steps
            stop = self.interrupt.received is not None
            evaluate = last or stop or (step + 1) % every.eval_every == 0
            save = last or stop or (step + 1) % every.checkpoint_every == 0
            if evaluate or save:
                _require_finite(jax.tree.leaves(state.adapters), done)
            if evaluate:
                self.monitor.stepped(*unread)
                unread = None
                self._evaluate(done, state)
            if save:
                self.checkpoints.save(done, state, self.secret)
            if stop and not last:
                raise Interrupted(done, self._epsilon(done))
        return state

    def _evaluate(self, done: Position, state: TrainState) -> None:
        probabilities = self.trainer.validation_probabilities(state)
        _require_finite([probabilities], done)
        metrics = classification_metrics(
            probabilities, self.inputs.labels["validation"], self.inputs.dataset.label_names
        )
        self.monitor.evaluated(done, metrics, self._epsilon(done))

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
