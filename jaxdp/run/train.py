# SPDX-License-Identifier: Apache-2.0
"""A whole run, in order: plan, load, train stage by stage, evaluate, release."""

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxdp import dp
from jaxdp.config import Config
from jaxdp.data.dataset import ReportDataset
from jaxdp.evaluation.predictions import TestPredictions
from jaxdp.files import write_json, write_whole
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.pretrained import LoadReport
from jaxdp.models.readers import own_of, turned_queries
from jaxdp.training.frozen_layers import FrozenLayers, mean_feature
from jaxdp.training.members import share_frozen
from jaxdp.training.mesh import make_mesh
from jaxdp.training.randomness import RunSecret, noise_generator, seed_policy
from jaxdp.training.setup import (
    Inputs,
    arithmetic,
    keeping,
    load_inputs,
    test_probabilities,
    token_buckets,
)
from jaxdp.training.stages import Stage, plan_run
from jaxdp.training.trainer import StageMember, StageTrainer
from jaxdp.training.warm_start import build_model, public_center, public_start

from . import processes
from .begin import Run, begin, require_same_inputs, shared_secret, tell_patients
from .checkpoint import Checkpoints, Position, furthest
from .directory import RunDirectory, RunError
from .interrupt import Interrupt
from .loop import Interrupted, StageLoop
from .monitor import Monitor, SilentMonitor
from .preview import plan_lines
from .release import write_release

_NOT_COVERED = (
    "computed on held-out reports and not covered by the privacy guarantee; publish it only if "
    "those reports are public"
)
_STATES = 8 * 2**30  # bytes of all reports' states that are kept until queries have turned, at most


def train(
    config: Config,
    *,
    resume: bool,
    interrupt: Interrupt,
    monitor: Monitor | SilentMonitor,
    sampling_root: bytes | None = None,
    dataset: ReportDataset | None = None,
) -> dict[str, Any]:
    """Runs the configuration to the end and writes the run directory.

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
    (result,) = train_members(
        [config], [monitor], interrupt, sampling_root, resume=resume, dataset=dataset
    )
    return result


def train_members(
    configs: Sequence[Config],
    monitors: Sequence[Monitor | SilentMonitor],
    interrupt: Interrupt,
    sampling_root: bytes | None,
    *,
    folder: Path | None = None,
    resume: bool = True,
    dataset: ReportDataset | None = None,
) -> list[dict[str, Any]]:
    """Trains members of a group in one program, and finishes those that are not yet; each ends with
    the run directory that it would have alone.

    Guarantee: that of `train` for each, with its own secret and the group's samples, up to the
    rounding of sums. One that was finished takes part, and nothing of it is written again.

    Args:
        configs: the members', which differ in numbers alone: all of them, also when some are
            finished, and in the same order as before. All private, or none; no secure noise.
        sampling_root: of the group, see `RunSecret`.
        folder: for the checkpoints, each of all members, or of none; private. None for a run that
            is alone, and must not be finished.

    Returns:
        What `train` gives back, of each that was not finished.

    Raises:
        CannotShare: see `members.share_frozen`; nothing was done with the reports.
        Others: see `train`.
    """
    together = folder is not None
    if together and jax.process_count() > 1:
        raise RunError("members are trained together by one process")
    config = configs[0]  # what they share is read from the first
    plans = [plan_run(each) for each in configs]
    mesh = make_mesh(config.run.devices, len(configs))
    for each, plan, monitor in zip(configs, plans, monitors, strict=True):
        monitor.planned(plan_lines(each, plan))
    with contextlib.ExitStack() as held:

        def opened(own: Config) -> RunDirectory:
            directory = RunDirectory(own, resume=resume)
            held.callback(directory.close)
            if directory.finished and not together:
                raise RunError(
                    f"{directory.path} is finished already; its results are in {directory.release}"
                )
            return directory

        directories = processes.first(lambda: [opened(each) for each in configs])
        directories = directories or [None] * len(configs)
        inputs = processes.on_all(lambda: load_inputs(config, dataset))
        anywhere = dataclasses.replace(config.data, root=None, cache=None)  # paths may differ
        require_same_inputs((dataclasses.replace(config, data=anywhere), plans[0]), inputs)
        runs = []
        members = zip(configs, plans, directories, monitors, strict=True)
        for each, plan, directory, monitor in members:
            monitor.loaded(inputs, plan)
            new = RunSecret.create(each.run.research_seed, sampling_root)
            secret = shared_secret(new, directory, inputs)
            runs.append(Run(each.run.name, plan, secret, directory, monitor))
            tell_patients(runs[-1], inputs)
        if together and furthest(folder) is not None:
            for directory in directories:
                directory.require_started()
        states = folder or (directories[0] and directories[0].checkpoints)
        checkpoints = Checkpoints(
            states,
            config.run.keep_checkpoints,
            lambda damaged: [monitor.set_aside(damaged) for monitor in monitors],
        )
        stop = processes.SharedInterrupt(interrupt, mesh)
        # A resumed run needs the very same, wherever it goes on.
        kept_start = keeping(states and states.with_name(f"{states.name}.public_start"))
        turned = None
        if config.train.query_share:
            turned = Checkpoints(states and states.with_name(f"{states.name}.queries"), 2)
        models, weights = train_stages(config, runs, inputs, checkpoints, stop, kept_start, turned)
        predicted = [None] * len(runs)
        if "test" in inputs.tokens:
            watch = monitors[0].watch("test split")
            predicted = test_probabilities(config, models, inputs, mesh, watch)
        return [
            _finish(each, run, inputs, model, weights.initialised, answers)
            for each, run, model, answers in zip(configs, runs, models, predicted, strict=True)
            if run.directory is None or not run.directory.finished
        ]


def train_stages(
    config: Config,
    runs: Sequence[Run],
    inputs: Inputs,
    checkpoints: Checkpoints,
    stop: processes.SharedInterrupt,
    kept_start: Path | None = None,
    turned: Checkpoints | None = None,
) -> tuple[list[ReportClassifier], LoadReport]:
    """Trains one run, or several as one program, from the beginning or from the newest checkpoint.

    Runs `begin` once it is known that everything can be used, and before anything is done with the
    reports. `config` says what the runs share; `kept_start` keeps their public start, and `turned`
    the queries that a query stage turns.

    Returns:
        The trained models, and how they were loaded.
    """
    saved, stages = checkpoints.latest(), runs[0].plan.stages
    position = saved or Position(0, 0)
    after = len(stages) - 1 if config.train.query_share else None  # the stage after queries turn
    secure, budget = config.privacy.secure_noise, config.privacy.total_budget
    ledger = None if config.privacy.ledger is None else dp.Ledger(Path(config.privacy.ledger))
    # A public start and frozen layers may take minutes, and leave nothing half done.
    with stop.raising(lambda: Interrupted.at(saved, runs)):
        models, weights = processes.on_all(lambda: _build(config, runs, inputs, kept_start))
        pairs = list(zip(runs, models, strict=True))
        for run, model in pairs:
            run.monitor.built(model, weights, config.train.trained)
        processes.first(lambda: [begin(*pair, inputs, ledger, budget) for pair in pairs])
        public = None if after is None else own_of(models[0])
        ahead = stages if position.stage != after else ()
        frozen_layers = _frozen_layers(config, runs[0], models[0], inputs, ahead)
    centers = [0.0] * len(runs)
    if config.centering.l2_clip_norm is not None:
        features = frozen_layers.at(models[0].feature_level)["train"]
        released = [
            mean_feature(
                features, inputs.units, run.plan.centering, run.secret, secure_noise=secure
            )
            for run in runs
        ]
        centers = processes.from_first(released)
    for index in range(position.stage, len(stages)):
        if index == after:
            (model,) = models
            trainer = loop = None  # large, and of the queries before
            at = max(position, Position(index - 1, stages[index - 1].steps))
            with stop.raising(lambda at=at: Interrupted.at(at, runs)):
                if index > position.stage:
                    found = _turned(config, runs[0], model, public, inputs)
                    for copy in range(2):  # one may be damaged
                        turned.save(Position(index, copy), found)
                _begin_again(model, turned)
                for level in (_below_queries(config, model, inputs), model.feature_level):
                    frozen_layers = frozen_layers.above(level, model)
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
        loop = StageLoop(
            runs,
            inputs,
            trainer,
            checkpoints,
            stop,
            task=config.data.task,
            checkpoint_every=config.run.checkpoint_every,
            eval_every=config.run.eval_every,
        )
        with contextlib.ExitStack() as showing:
            for run in runs:
                showing.enter_context(run.monitor.stage(run.directory, run.plan.stages, start))
            trainer.install(loop.run(start, state))
    for model in models:
        model.fold_basis()
        model.divide_logits(config.train.temperature)
    return models, weights


def _turned(
    config: Config, run: Run, model: ReportClassifier, public: nnx.State, inputs: Inputs
) -> tuple[jax.Array, jax.Array]:
    """(queries that turn to the model's head, centre of the features that they read); all else of
    the model is `public` again, in place."""
    queries = turned_queries(model)
    nnx.update(model, public)
    model.label_attention.queries[...] = queries
    names, watch = inputs.dataset.label_names, run.monitor.watch("turned queries")
    return queries, public_center(config, model, inputs.backbone.directory, names, watch)


def _begin_again(model: ReportClassifier, turned: Checkpoints) -> None:
    """Gives a model with a basis the queries and the centre that are kept; in place. Its head
    computes the same of what it reads.

    Raises:
        RunError: nothing sound is kept.
    """
    kept = turned.latest()
    if kept is None:
        raise RunError("private/checkpoints.queries is damaged: this run cannot go on")
    like = model.label_attention.queries[...], model.basis.center[...]
    queries, center = turned.restore(kept, like)
    directions = model.basis.directions
    model.fold_basis()
    model.label_attention.queries[...] = queries
    model.set_basis(center, None if directions is None else directions[...])


def _build(
    config: Config, runs: Sequence[Run], inputs: Inputs, kept_start: Path | None
) -> tuple[list[ReportClassifier], LoadReport]:
    models = []
    if kept_start is not None and not any(run.directory.started for run in runs):
        shutil.rmtree(kept_start, ignore_errors=True)  # of settings that were never begun with
    for run in runs:
        if models and config.warm_start.phrasebook is not None:
            # A public start takes its time, and members do not differ in it.
            model = nnx.clone(models[0])
        else:
            model, weights = build_model(
                config,
                inputs.backbone,
                inputs.dataset.label_names,
                run.secret,
                run.monitor.watch("public start"),
                kept_start,
            )
        if models:
            share_frozen(models[0], model)
        models.append(model)
    return models, weights


def _below_queries(config: Config, model: ReportClassifier, inputs: Inputs) -> int:
    """The level at which reports are kept for when queries have turned; 0, token ids, where none
    turn, or where states take too much."""
    if not config.train.query_share:
        return 0
    width = model.label_attention.queries.shape[-1]
    fits = inputs.lengths.sum() * width * np.float32().nbytes <= _STATES
    return model.level_of(("label_attention",)) if fits else 0


def _frozen_layers(
    config: Config, run: Run, model: ReportClassifier, inputs: Inputs, stages: Sequence[Stage]
) -> FrozenLayers:
    """With every level that these stages start from, and what lies `_below_queries`."""
    frozen_layers = FrozenLayers(
        model,
        {split: tokens for split, tokens in inputs.tokens.items() if split != "test"},
        token_buckets(config, inputs.lengths),
        keeping(config.data.cache),
        make_mesh(config.run.devices),
        run.monitor.watch("frozen layers"),
    )
    # From the lowest level up, so that each is made from the one before.
    levels = {model.start_level(lora.split(model, stage.mode)[1]) for stage in stages}
    for level in sorted(levels and levels | {_below_queries(config, model, inputs)}):
        frozen_layers.at(level)
    return frozen_layers


def _finish(
    config: Config,
    run: Run,
    inputs: Inputs,
    model: ReportClassifier,
    initialised: Sequence[str],
    probabilities: np.ndarray | None,
) -> dict[str, Any]:
    """Writes release/, any test predictions, then metrics.json, which says that all is there."""
    statement = dp.privacy_statement(
        run.plan.mechanisms(),
        delta=run.plan.delta,
        privacy_unit=config.privacy.unit,
        seed_policy=seed_policy(config.run.research_seed),
        noise_generator=noise_generator(config.privacy.secure_noise),
        label_origin=inputs.dataset.label_origin,
        max_reports_per_patient=config.privacy.max_reports_per_patient,
        public_start=public_start(config.warm_start),
    )
    predictions, metrics = None, {"note": "there is no test split", "test": None}
    if probabilities is not None:
        predictions = TestPredictions.of(inputs.dataset, probabilities, config.privacy.unit)
        metrics = {"note": _NOT_COVERED, "test": predictions.metrics(config.data.task)}
    metrics["arithmetic"] = f"{arithmetic(config)} on {jax.default_backend()}"

    def write() -> None:
        write_release(
            run.directory.release,
            model,
            config.train.mode,
            backbone=inputs.backbone,
            label_names=inputs.dataset.label_names,
            max_length=inputs.max_length,
            initialised=initialised,
            statement=statement,
        )
        if predictions is not None:
            write_whole(run.directory.private / "test_predictions.npz", predictions.to_bytes())
        write_json(run.directory.path / "metrics.json", metrics)

    processes.first(write)
    run.monitor.finished(run.directory, statement, metrics["test"])
    return {"privacy": statement, "metrics": metrics}
