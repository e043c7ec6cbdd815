# SPDX-License-Identifier: Apache-2.0
"""Making a job of a configuration: what comes before the main stage is done here, by us."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from jaxdp.backbone import Backbone
from jaxdp.config import Config, ConfigError
from jaxdp.models.peft import WEIGHTS, save_adapter
from jaxdp.models.pretrained import read_config
from jaxdp.run.directory import RunError
from jaxdp.training.frozen_layers import FrozenLayers, mean_feature
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import Inputs, compute_dtype, load_inputs, token_buckets
from jaxdp.training.stages import plan_run
from jaxdp.training.trainer import StageMember, StageTrainer
from jaxdp.training.warm_start import build_model

from .job import TRAINED, Job, Reports


def make_job(config: Config, inputs: Inputs, folder: Path) -> Job:
    """Releases the mean feature and trains the head stage, where `config` has them, as `train.py`
    does from the same research_seed, and writes the adapter that then starts to `folder`.

    Raises:
        ConfigError: a setting that the other side has not.
    """
    _check(config, inputs.backbone)
    plan, secret = plan_run(config), RunSecret.create(config.run.research_seed)
    model, weights = build_model(config, inputs.backbone, inputs.dataset.label_names, secret)
    buckets, secure = token_buckets(config, inputs.lengths), config.privacy.secure_noise
    # The other side has no basis: what a public start has left as one is folded into the head, and
    # its centre taken from features as a released one is.
    center = np.zeros((), np.float32)
    if model.basis is not None:
        center = np.asarray(model.basis.center[...])
        model.fold_basis()
    frozen_layers = FrozenLayers(model, {"train": inputs.tokens["train"]}, buckets)
    if config.centering.l2_clip_norm is not None:
        features = frozen_layers.at(model.feature_level)["train"]
        center = mean_feature(features, inputs.units, plan.centering, secret, secure_noise=secure)
    for stage in plan.stages[:-1]:
        trainer = StageTrainer(
            [StageMember(stage, model, secret, center)],
            frozen_layers=frozen_layers,
            labels=inputs.labels,
            units=inputs.units,
            token_buckets=buckets,
            secure_noise=secure,
        )
        trainer.install(trainer.after(stage.steps))
    save_adapter(
        folder / "adapter",
        model,
        config.train.mode,
        base_model=inputs.backbone.name,
        label_names=inputs.dataset.label_names,
        initialised=weights.initialised,
    )
    return Job(
        config=config,
        backbone=str(inputs.backbone.directory),
        pooling=inputs.backbone.pooling,
        label_names=tuple(inputs.dataset.label_names),
        mechanisms={n: dataclasses.asdict(m) for n, m in plan.mechanisms().items()},
        adapter=folder / "adapter",
        center=center,
        train=reports_of(inputs, "train").take(inputs.units.members),
        test=reports_of(inputs, "test"),
    )


def reports_of(inputs: Inputs, split: str) -> Reports:
    tokens = inputs.tokens[split]  # lie in the order of their rows
    return Reports(np.asarray(tokens.values), np.asarray(tokens.lengths), inputs.labels[split])


def private_job(config: Config, folder: Path) -> Job:
    """See `make_job`.

    Raises:
        ConfigError: the configuration is not private.
    """
    if not config.privacy.private:
        raise ConfigError("config.privacy.epsilon must be a number: gradients are clipped here")
    return make_job(config, load_inputs(config), folder)


def find_jobs(
    configs: Sequence[Config], seeds: int, folder: Path, report: Callable[[str], None]
) -> Iterator[Job]:
    """Jobs of every seed and configuration, each in a folder of its own below this one, and made if
    it is not there yet.

    Raises:
        RunError: there is one of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # token ids and predictions will be there
    for seed, config in itertools.product(range(seeds), configs):
        own = dataclasses.replace(config, run=dataclasses.replace(config.run, research_seed=seed))
        name = f"{own.run.name}_epsilon_{own.privacy.epsilon or 'none'}_seed_{seed}"
        place = folder / name.replace(", ", "_").replace(" ", "_")
        if not (place / "job.json").exists():
            began = time.time()
            make_job(own, load_inputs(own), place).write()
            report(f"{place.name}: start made in {time.time() - began:.1f} s")
        job = Job.read(place)
        if job.config != own:
            raise RunError(f"{place} holds a run of other settings; choose another --output")
        yield job


def move_adapter(job: Job, scale: float = 0.02) -> None:
    """Adds noise to every tensor of the job's adapter, in place: where B is zero, as it starts, the
    gradient of A is too, and a comparison would see nothing."""
    path, rng = job.adapter / WEIGHTS, np.random.default_rng(0)
    tensors = safetensors.numpy.load_file(path)
    moved = {n: x + scale * rng.standard_normal(x.shape, x.dtype) for n, x in tensors.items()}
    safetensors.numpy.save_file(moved, path, metadata={"format": "pt"})


def _check(config: Config, backbone: Backbone) -> None:
    for field, value, allowed in (
        ("train.mode", config.train.mode, TRAINED),
        ("privacy.unit", config.privacy.unit, ("report",)),
        ("model.dtype", compute_dtype(config), ("float32",)),
        ("model.label_dimensions", config.model.label_dimensions, (None,)),
        ("data.windows", config.data.windows, (1,)),
        ("train.queries", config.train.queries, (False,)),
        ("train.query_share", config.train.query_share, (0,)),
        ("warm_start.readers", config.warm_start.readers, (1,)),
        ("model.backbone", read_config(backbone.directory).model_type, ("bert", "albert")),
    ):
        if value not in allowed:
            raise ConfigError(
                f"config.{field} must be {' or '.join(map(str, allowed))} to compare with PyTorch, "
                f"not {value!r}"
            )
