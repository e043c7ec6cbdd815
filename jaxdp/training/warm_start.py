# SPDX-License-Identifier: Apache-2.0
"""The public start: a model learns from made-up reports before it sees a private one."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from jaxdp import __version__
from jaxdp.config import Config, HeadStageConfig, TrainConfig
from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.phrasebook import Phrasebook
from jaxdp.data.store import key_of, stored
from jaxdp.data.tokens import load_tokenizer, tokenize
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import Watch, unwatched
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier

from .prefix import FrozenPrefix
from .randomness import RunSecret
from .stages import Stage
from .trainer import StageTrainer


def warm_start(
    config: Config,
    model: ReportClassifier,
    buckets: Buckets,
    *,
    directory: Path,
    label_names: Sequence[str],
    mesh: Mesh | None = None,
    folder: Path | None = None,
    watch: Watch = unwatched,
) -> None:
    """Trains head, then adapters and head, as config.warm_start says; in place.

    Guarantee: reads the configuration, the phrasebook and the model, and nothing else, so whatever
    it does is public; and it does the same again in a resumed run.

    Args:
        config: of the run.
        model: with its adapters, if it has any.
        buckets: shapes for token ids.
        directory: of the backbone, for its tokenizer.
        label_names: of the head's rows.
        mesh: devices to share the work; None is the default device alone.
        folder: keeps what was learnt for other runs of this version, see `store.stored`; None keeps
            nothing.
        watch: shows people how far it is, in reports and then in steps.

    Raises:
        DataError: the phrasebook cannot be used, or lacks a label.
    """
    settings = config.warm_start
    book = Phrasebook.read(settings.phrasebook)
    texts, labels = book.write_reports(settings.reports, label_names)
    tokens, _ = tokenize(texts, load_tokenizer(directory), config.data.max_length)

    train = partial(_train, config, model, buckets, tokens, labels, mesh, watch)
    if folder is None:
        train()
        return

    def learnt() -> tuple[Packed, int]:
        train()
        vector, _ = _trained(config, model)
        return Packed.from_lengths(np.asarray(vector), [vector.size]), 0

    devices = 1 if mesh is None else mesh.size  # sums of other shares are rounded otherwise
    versions = (__version__, jax.__version__, jax.default_backend(), devices)
    depends = (versions, config.model, model.pooling, config.lora, settings, buckets)
    weights = jax.tree.leaves(nnx.state(model, nnx.Param))
    key = key_of(repr(depends), (tokens.values, tokens.lengths, labels, *weights))
    kept, _ = stored(folder, key, learnt)
    _, read = _trained(config, model)
    nnx.update(model, read(jnp.asarray(kept.values)))


def _trained(config: Config, model: ReportClassifier) -> tuple[jax.Array, Callable]:
    """What a public start trains, as one vector, and how to read such a vector."""
    mode = "lora" if config.warm_start.trains_adapters else "head"
    return ravel_pytree(lora.split(model, mode)[1])


def _train(
    config: Config,
    model: ReportClassifier,
    buckets: Buckets,
    tokens: Packed,
    labels: np.ndarray,
    mesh: Mesh | None,
    watch: Watch,
) -> None:
    prefix = FrozenPrefix(model, {"train": tokens}, buckets, mesh=mesh, watch=watch)
    center = prefix.at(model.feature_level)["train"].values.mean(axis=0)
    everything = np.arange(len(tokens) + 1)
    for stage in _stages(config):
        trainer = StageTrainer(
            stage,
            model,
            prefix=prefix,
            labels={"train": labels},
            units=PrivacyUnits("report", everything[:-1], everything),
            secret=RunSecret.create(0),  # no secret is needed
            token_buckets=buckets,
            center=center,
            mesh=mesh,
        )
        state = trainer.initial_state
        with watch(stage.steps, "steps") as stepped:
            for step in range(stage.steps):
                state, diagnostics = trainer.step(state, step, trainer.plan(step))
                jax.block_until_ready(diagnostics)  # no queue of steps with collectives in them
                stepped(1)
        trainer.install(state)


def _stages(config: Config) -> list[Stage]:
    settings = config.warm_start
    head = HeadStageConfig(
        steps=settings.head_steps,
        expected_batch_size=float(settings.reports),
        learning_rate=settings.head_learning_rate,
    )
    stages = [Stage("warm start of the head", "head", head, None)]
    if settings.trains_adapters:
        both = TrainConfig(
            steps=settings.steps,
            expected_batch_size=settings.expected_batch_size,
            learning_rate=settings.learning_rate,
            schedule="linear",
        )
        stages.append(Stage("warm start", "lora", both, None))
    return stages


def public_start(config: Config) -> str | None:
    """What the statement says about it; None if there is none."""
    settings = config.warm_start
    if settings.phrasebook is None:
        return None
    book = Phrasebook.read(settings.phrasebook)
    what = "head and adapters" if settings.trains_adapters else "head"
    return (
        f"{what} learnt first from {settings.reports} made-up reports, without noise; their "
        f"sentences: {book.origin}"
    )
