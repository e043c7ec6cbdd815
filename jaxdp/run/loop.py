# SPDX-License-Identifier: Apache-2.0
"""The steps of one stage, and what has to happen between them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdp.evaluation.metrics import classification_metrics
from jaxdp.training.setup import Inputs
from jaxdp.training.step import TrainState
from jaxdp.training.trainer import StageTrainer

from . import processes
from .begin import Run
from .checkpoint import Checkpoints, Position


class Interrupted(BaseException):
    """Training was asked to stop; everything up to `position` is saved.

    A BaseException like KeyboardInterrupt: it comes wherever a signal does, and must not be taken
    for what a library that reads damaged files may raise.
    """

    def __init__(self, position: Position, epsilon: float | None):
        self.position = position
        self.epsilon = epsilon
        super().__init__(position, epsilon)  # both, or it could not be pickled

    @classmethod
    def at(cls, saved: Position | None, runs: Sequence[Run]) -> "Interrupted":
        """Where everything up to `saved` is on disk; of a run alone it says the cost."""
        epsilon = runs[0].plan.epsilon(*saved) if saved is not None and len(runs) == 1 else None
        return cls(saved or Position(0, 0), epsilon)


@dataclasses.dataclass(frozen=True)
class StageLoop:
    """Trains one stage of one run, or of several in one program."""

    runs: Sequence[Run]
    inputs: Inputs
    trainer: StageTrainer
    checkpoints: Checkpoints
    stop: processes.SharedInterrupt
    task: str  # see `models.tasks`
    checkpoint_every: int  # steps between those
    eval_every: int

    def run(self, position: Position, state: TrainState) -> TrainState:
        """The state after the last step; Interrupted and FloatingPointError as `train.train`."""
        stage = self.trainer.stage
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
            unread = (done, plan, diagnostics)
            stop = self.stop.received()
            evaluate = stop or self._due(step + 1)
            if evaluate or (step + 1) % self.checkpoint_every == 0:
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
            if stop and step + 1 < stage.steps:
                raise Interrupted.at(done, self.runs)
        return state

    def _due(self, step: int) -> bool:
        """Whether there is an evaluation after so many steps."""
        return step == self.trainer.stage.steps or step % self.eval_every == 0

    def _show(self, done: Position, metrics: list[dict[str, Any]]) -> None:
        if not metrics:
            return
        for run, own in zip(self.runs, metrics, strict=True):
            run.monitor.evaluated(done, own, run.plan.epsilon(*done))

    def _stepped(self, done: Position, plan, diagnostics) -> None:
        read, reports, fill = self.trainer.describe(plan, diagnostics)
        for run, own in zip(self.runs, self.trainer.each(read), strict=True):
            run.monitor.stepped(done, own, reports, fill)

    def _evaluate(self, done: Position, state: TrainState) -> list[dict[str, Any]]:
        """Each run's metrics on the validation split; none at all where there is none."""
        if "validation" not in self.inputs.tokens:
            return []
        probabilities = self.trainer.validation_probabilities(state)
        self._require_finite(probabilities, done)
        labels, names = self.inputs.labels["validation"], self.inputs.dataset.label_names
        return [
            classification_metrics(own, labels, names, self.task)
            for own in self.trainer.each(probabilities)
        ]

    def _require_finite(self, values: Any, done: Position) -> None:
        """Of adapters, or of what they predict: after the noise, so that stopping tells nothing."""
        for run, own in zip(self.runs, self.trainer.each(values), strict=True):
            if not all(bool(jnp.isfinite(array).all()) for array in jax.tree.leaves(own)):
                raise FloatingPointError(
                    f"{run.name}: the adapter is no longer usable after step {done.step}: it holds "
                    "or predicts numbers that are not finite; lower the learning rate (this state "
                    "was not saved)"
                )
