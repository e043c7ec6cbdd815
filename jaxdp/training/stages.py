# SPDX-License-Identifier: Apache-2.0
"""What a run will do to the private reports: every mechanism, calibrated before any is run."""

import dataclasses

import optax

from jaxdp import dp
from jaxdp.config import Config, ConfigError, HeadStageConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training."""

    name: str  # unique in the run; names its random streams and its row in the statement
    mode: str  # what it trains, see `models.lora.MODES`
    settings: HeadStageConfig | TrainConfig  # steps, batch, learning rate, optimizer and schedule
    mechanism: dp.SubsampledGaussian | None  # what is released each step; None without privacy

    @property
    def steps(self) -> int:
        return self.settings.steps


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """All mechanisms of a run, in order."""

    delta: float  # at which what they cost is stated
    centering: dp.SubsampledGaussian | None
    """The release of the mean feature, before the first stage; None if there is none, or without
    privacy."""
    stages: tuple[Stage, ...]  # at least the main stage

    def mechanisms(
        self, stage: int | None = None, step: int = 0
    ) -> dict[str, dp.SubsampledGaussian]:
        """Name -> mechanism with the steps TAKEN, after `step` steps of stage number `stage`.

        No arguments: all of them, to the end. Empty for training without privacy.
        """
        done = {} if self.centering is None else {"feature mean": self.centering}
        for index, planned in enumerate(self.stages):
            if planned.mechanism is None or (stage is not None and index > stage):
                continue
            steps = step if index == stage else planned.steps
            done[planned.name] = planned.mechanism.replace(steps=steps)
        return done

    def epsilon(self, stage: int | None = None, step: int = 0) -> float | None:
        """Of those `mechanisms`; None without privacy."""
        mechanisms = list(self.mechanisms(stage, step).values())
        return dp.epsilon_pld(mechanisms, self.delta) if mechanisms else None


def plan_run(config: Config) -> RunPlan:
    """The run's mechanisms, noise calibrated so that together they meet privacy.epsilon.

    Mean feature, head stage and query stage get the noise at which each alone costs its share of
    epsilon (the head stage: or its fixed noise_multiplier); the main stage gets what the target
    then leaves, or its fixed noise_multiplier.

    Raises:
        ConfigError: the target is not supported, cannot be met, or is exceeded by fixed noise.
    """
    head, main, privacy = config.head_stage, config.train, config.privacy

    def calibrated(section, batch, steps, clip_norm, *, share=1.0, fixed=None, others=()):
        if not privacy.private:
            return None
        try:
            mechanism = dp.SubsampledGaussian(
                units=privacy.units,
                expected_batch_size=batch,
                steps=steps,
                l2_clip_norm=clip_norm,
                noise_multiplier=0.0 if fixed is None else fixed,
            )
        except ValueError as error:
            raise ConfigError(f"config.{section}: {error}") from None
        if fixed is not None:
            return mechanism
        return dp.calibrate_noise(mechanism, share * privacy.epsilon, privacy.delta, others=others)

    def stage(name, mode, settings, section, clip_norm, **noise):
        batch, steps = settings.expected_batch_size, settings.steps
        return Stage(name, mode, settings, calibrated(section, batch, steps, clip_norm, **noise))

    centering, stages = None, []
    try:
        if privacy.private:
            # Before the stages' own shares of it are calibrated, which takes seconds.
            dp.require_target(privacy.epsilon)
        mean = config.centering
        if mean.l2_clip_norm is not None:
            noise = {"share": mean.epsilon_share}
            centering = calibrated("centering", privacy.units, 1, mean.l2_clip_norm, **noise)
        if head.steps:
            noise = {"share": head.epsilon_share, "fixed": head.noise_multiplier}
            stages.append(
                stage("head stage", "head", head, "head_stage", head.l2_clip_norm, **noise)
            )
        same = (main.trained, main, "privacy", privacy.l2_clip_norm)
        if main.query_share:
            stages.append(stage("query stage", *same, share=main.query_share))
        before = RunPlan(privacy.delta, centering, tuple(stages)).mechanisms().values()
        noise = {"fixed": privacy.noise_multiplier, "others": list(before)}
        stages.append(stage("main stage", *same, **noise))
        plan = RunPlan(privacy.delta, centering, tuple(stages))
        total = plan.epsilon()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.privacy: {error}") from None
    if privacy.private and total > privacy.epsilon:
        raise ConfigError(
            f"config.privacy.epsilon is {privacy.epsilon:g}, but the fixed noise multipliers cost "
            f"{total:.4g}; raise them, or let them be calibrated (None)"
        )
    return plan


def make_optimizer(settings: HeadStageConfig | TrainConfig) -> optax.GradientTransformation:
    """The optimizer that follows the release; everything in it is post-processing.

    `optax.adam` or `optax.sgd` with momentum 0.9, to the last bit, but its state holds the learning
    rate, so that the states of several trainings can be stacked.
    """
    schedule = {
        "constant": lambda: optax.constant_schedule(1.0),
        "linear": lambda: optax.linear_schedule(1.0, 0.0, settings.steps),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, settings.steps),
    }[settings.schedule]()
    rule = {"adam": optax.scale_by_adam, "sgd": lambda: optax.trace(decay=0.9)}[settings.optimizer]

    @optax.inject_hyperparams
    def descend(rate):
        return optax.scale_by_schedule(lambda step: -rate * schedule(step))

    return optax.chain(rule(), descend(rate=settings.learning_rate))
