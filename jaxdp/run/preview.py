# SPDX-License-Identifier: Apache-2.0
"""What a run will do, in words, and what is wrong with its settings; no report is read."""

from collections.abc import Iterator
from pathlib import Path

import jax

from jaxdp import dp, recipe
from jaxdp.backbone import backbone_size, hub_id_of
from jaxdp.config import Config, ConfigError
from jaxdp.data.dataset import DataError
from jaxdp.data.load import label_names, source_of
from jaxdp.training.setup import arithmetic
from jaxdp.training.stages import RunPlan
from jaxdp.training.warm_start import phrasebook_of


def plan_lines(config: Config, plan: RunPlan) -> list[str]:
    """How it trains, for `Monitor.planned`."""
    epsilon, unit = config.privacy.epsilon, config.privacy.unit
    target = "none (not private)" if epsilon is None else f"{epsilon:.4g}"
    lines = [f"run [bold]{config.run.name}[/], target epsilon {target}"]
    settings = config.to_dict()
    for section, field, value, reason in recipe.choices(settings) if config.train.recipe else ():
        if settings[section][field] == value:
            lines.append(f"  by the recipe: {section}.{field} = {value} ({reason})")
    lines.append(f"  matrix products: {arithmetic(config)} on {jax.default_backend()}")
    lines += [f"  {stage.name}: {stage.mode}, {stage.steps} steps" for stage in plan.stages]
    lines += [
        f"  {name}: expected batch {m.expected_batch_size:g} of {m.units:,} {unit}s, clip norm "
        f"{m.l2_clip_norm:g}, noise multiplier {m.noise_multiplier:.4g}"
        for name, m in plan.mechanisms().items()
    ]
    if epsilon is not None and config.run.research_seed is not None:
        lines.append("[yellow]research_seed is set: repeatable, and hence unprotected[/]")
    return lines


def problems(config: Config) -> Iterator[str]:
    """What is wrong with the settings, as far as they tell without a report."""
    labels, backbone, settings = label_names(config.data), config.model.backbone, config.warm_start

    def phrasebook() -> None:
        if settings.phrasebook is not None and labels:
            phrasebook_of(settings, labels).findings(labels)

    def model() -> None:
        if not Path(backbone).expanduser().is_dir():
            hub_id_of(backbone)

    for check in (lambda: source_of(config.data), phrasebook, model):
        try:
            check()
        except (ConfigError, DataError) as error:
            yield str(error)
    privacy = config.privacy
    if privacy.private and (warning := dp.delta_warning(privacy.delta, privacy.units)):
        yield f"config.privacy.{warning}"


def release_lines(config: Config, plan: RunPlan) -> list[str]:
    """What it trains in private, and what leaves."""
    labels, size = label_names(config.data), backbone_size(config.model.backbone)
    trained = plan.stages[-1].mode
    if trained == "head" and labels and size:
        whole = size[1] * config.warm_start.readers
        width = min(config.model.label_dimensions or whole, whole)
        trained = f"head of {len(labels)} x ({width} + 1) = {len(labels) * (width + 1):,} numbers"
    released, epsilon = "released: the adapter, its tokenizer and labels", plan.epsilon()
    if epsilon is not None:
        released += f"; and the statement: epsilon {epsilon:.4g} at delta {plan.delta:g}"
        released += f", per {config.privacy.unit}"
    return [f"trained in private: {trained}", released, f"to: {config.path / 'release'}"]
