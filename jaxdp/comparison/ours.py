# SPDX-License-Identifier: Apache-2.0
"""Our side of a job; trained to its end, in a process of its own, by

python -m jaxdp.comparison.ours JOB_FOLDER OUTCOME_FOLDER BEGAN

BEGAN is the Unix time at which the process was started.
"""

import inspect
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax
import safetensors.numpy
from flax import nnx

from jaxdp import dp
from jaxdp.baseline.job import MAIN, Job, Outcome, Reports, peak_memory
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import packed_logits
from jaxdp.models import lora
from jaxdp.models.peft import load_adapter, save_adapter
from jaxdp.models.pretrained import load_classifier
from jaxdp.runtime import prepare
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.mesh import make_mesh
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import token_buckets
from jaxdp.training.stages import Stage
from jaxdp.training.step import TrainState, multilabel_loss
from jaxdp.training.trainer import StageTrainer


class OurTrainer:
    """The main stage of a job by `training.trainer.StageTrainer`, with what comparing needs."""

    def __init__(self, job: Job):
        self.job, config = job, job.config
        self._model, _ = load_classifier(
            Path(job.backbone), len(job.label_names), job.pooling, rngs=nnx.Rngs(0)
        )
        load_adapter(job.adapter, self._model)
        mesh = make_mesh(config.run.devices)
        # The split that a stage calls validation is the one it can label.
        tokens = {"train": _packed(job.train), "validation": _packed(job.test)}
        mechanism = dp.SubsampledGaussian(**job.mechanisms[MAIN]) if job.private else None
        units = np.arange(len(job.train) + 1)
        self.stage = StageTrainer(
            Stage(MAIN, config.train.mode, config.train, mechanism),
            self._model,
            frozen_layers=FrozenLayers(self._model, tokens, token_buckets(config), mesh=mesh),
            labels={"train": job.train.labels},
            units=PrivacyUnits(config.privacy.unit, units[:-1], units),
            secret=RunSecret.create(config.run.research_seed),
            token_buckets=token_buckets(config),
            center=job.center,
            secure_noise=config.privacy.secure_noise,
            mesh=mesh,
        )

    def rows(self, step: int) -> np.ndarray:
        """The reports that take part in `step`."""
        rows = self.stage.plan(step).rows
        return np.sort(rows[rows >= 0])

    def clipped_sum(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(norm of each training report's gradient at the start, clipped sum by adapter tensor)."""
        graphdef, _, frozen = lora.split(self._model, self.job.config.train.mode)

        def loss(adapters, ids, length, labels):
            model = nnx.merge(graphdef, adapters, frozen)
            return multilabel_loss(packed_logits(model, ids, length, 0, self.job.center), labels)

        train = self.job.train
        ids, lengths = _packed(train).gather(np.arange(len(train)), int(train.lengths.max()))
        gradient_sum = dp.clipped_gradient_sum(loss, self.stage.stage.mechanism.l2_clip_norm)
        total, diagnostics = jax.jit(gradient_sum)(
            self.stage.initial_state.adapters,
            ids,
            lengths,
            train.labels,
            is_padding=np.zeros(len(train), bool),
        )
        return np.asarray(diagnostics.norm), self._by_name(total)

    def adapters(self, state: TrainState) -> dict[str, np.ndarray]:
        """The adapter by the names of its file; the head is the centred one."""
        return self._by_name(state.adapters)

    def _by_name(self, adapters: nnx.State) -> dict[str, np.ndarray]:
        mode = self.job.config.train.mode
        graphdef, _, frozen = lora.split(self._model, mode)
        with tempfile.TemporaryDirectory() as folder:
            model = nnx.merge(graphdef, adapters, frozen)
            save_adapter(Path(folder), model, mode, base_model="", label_names=self.job.label_names)
            return safetensors.numpy.load_file(Path(folder) / "adapter_model.safetensors")

    def settings(self) -> dict[str, Any]:
        """What is run, under the names that `TorchTrainer.settings` uses."""
        config, stage = self.job.config, self.stage.stage
        buckets = token_buckets(config)
        mechanism, train = stage.mechanism, stage.settings
        trained = jax.tree.leaves(self.stage.initial_state.adapters)
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(optax.adam).parameters.items()
        }
        adam = train.optimizer == "adam"
        layer = next(
            (m for _, m in nnx.iter_modules(self._model) if isinstance(m, lora.LoRALinear)), None
        )
        return {
            "framework": f"jax {jax.__version__}, flax {flax.__version__}, optax "
            f"{optax.__version__}",
            "per-example gradients": "vmap" if mechanism else "none",
            "backbone layers": self._model.depth,
            "pooling": self._model.pooling,
            "trained tensors": len(trained),
            "trained numbers": sum(x.size for x in trained),
            "lora rank": layer.rank if layer else 1,
            "lora alpha": layer.alpha if layer else 1,
            "dropout": 0.0,
            "loss": "binary cross-entropy, mean over labels",
            "train reports": len(self.job.train),
            "steps": stage.steps,
            "sampling": "Poisson",
            "sampling probability": self.job.sampling_probability,
            "noise multiplier": mechanism.noise_multiplier if mechanism else None,
            "clip norm": mechanism.l2_clip_norm if mechanism else None,
            "divided by": train.expected_batch_size,
            "clip factor": "C / norm" if mechanism else None,
            "optimizer": train.optimizer,
            "learning rate": train.learning_rate,
            "schedule": train.schedule,
            "optimizer betas": (defaults["b1"], defaults["b2"]) if adam else None,
            "optimizer eps": defaults["eps"] if adam else None,
            "optimizer momentum": None if adam else 0.9,
            "weight decay": 0,
            "arithmetic": str(trained[0].dtype),
            "attention": "jaxdp.models.layers",
            "padding": f"to one of {len(buckets.widths)} widths, batch sorted by length",
            "physical batch": f"about {buckets.widths[0] * buckets.rows[0]} tokens",
            "threads": f"{os.cpu_count()}, on {jax.device_count()} devices",
        }


def _packed(reports: Reports) -> Packed:
    return Packed.from_lengths(reports.ids, reports.lengths)


def run(job: Job, began: float) -> Outcome:
    """Trains the job to its end; `began` is when setting up began, in Unix time."""
    trainer = OurTrainer(job)
    stage, reports = trainer.stage, []
    state, marks = stage.initial_state, [began, time.time()]
    for step in range(stage.stage.steps):
        plan = stage.plan(step)
        state, diagnostics = stage.step(state, step, plan)
        jax.block_until_ready(diagnostics)  # no queue of steps with collectives in them
        reports.append(int((plan.rows >= 0).sum()))
        if step == 0:
            jax.block_until_ready(state)
            marks.append(time.time())
    jax.block_until_ready(state)
    marks.append(time.time())
    delta = job.config.privacy.delta
    mechanisms = [dp.SubsampledGaussian(**fields) for fields in job.mechanisms.values()]
    epsilon = {"pld": dp.epsilon_pld, "rdp": dp.epsilon_rdp} if mechanisms else {}
    setup, first, later = np.diff(marks).tolist()
    return Outcome(
        setup_seconds=setup,
        first_step_seconds=first,
        later_seconds=later,
        reports=reports,
        epsilon={name: accountant(mechanisms, delta) for name, accountant in epsilon.items()},
        settings=trainer.settings(),
        probabilities=stage.validation_probabilities(state),
        peak_memory=peak_memory(),
    )


if __name__ == "__main__":
    prepare()
    job, outcome, began = sys.argv[1:]
    run(Job.read(Path(job)), float(began)).write(Path(outcome))
