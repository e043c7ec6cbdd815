# SPDX-License-Identifier: Apache-2.0
"""jaxdp itself on a job."""

import dataclasses
import inspect
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax
from flax import nnx

from jaxdp import dp, runtime
from jaxdp.data.batching import Plan
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.peft import load_adapter
from jaxdp.models.pretrained import load_classifier
from jaxdp.models.tasks import TASKS
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.mesh import make_mesh
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import arithmetic, compute_dtype, token_buckets
from jaxdp.training.stages import Stage
from jaxdp.training.step import LabelledData, make_share_sum
from jaxdp.training.trainer import StageMember, StageTrainer, gradient_by, report_loss

from .job import ADAPTER_PREFIX, MAIN, Job, Reports
from .side import Side


class JaxSide(Side):
    """Our model on JAX's devices."""

    prepare = staticmethod(runtime.prepare)

    def savings(self) -> dict[str, Any]:
        # It ends in the pooled token where that is all its head sees.
        return {"pooled_only": self.job.pooling == "cls"}

    def device_memory(self) -> int:
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        return max(each.get("peak_bytes_in_use", 0) for each in stats)

    def settings(self) -> dict[str, Any]:
        device = jax.devices()[0].device_kind
        return {"device": device, "arithmetic": arithmetic(self.job.config)}


class OurTrainer(JaxSide):
    """`training.trainer.StageTrainer`, as `scripts/train.py` uses it.

    Args:
        job: what to train, and from where.
        private: False leaves clip and noise out, at the job's sampling probability.
        dtype: in place of the configuration's model.dtype.
    """

    def __init__(self, job: Job, private: bool = True, dtype: str | None = None):
        if not private:
            job = dataclasses.replace(job, mechanisms={})
        if dtype:
            job = job.with_dtype(dtype)
        self.job, self._model, mesh = job, load_model(job), make_mesh(job.devices)
        buckets = token_buckets(job.config, np.append(job.train.lengths, job.test.lengths))
        # The split that a stage calls validation is the one it can label.
        tokens = {"train": packed(job.train), "validation": packed(job.test)}
        mechanism = dp.SubsampledGaussian(**job.mechanisms[MAIN]) if job.private else None
        units = np.arange(len(job.train) + 1)
        stage = Stage(MAIN, job.stage.mode, job.stage, mechanism)
        self.stage = StageTrainer(
            [StageMember(stage, self._model, RunSecret.create(job.seed), job.center)],
            frozen_layers=FrozenLayers(self._model, tokens, buckets, mesh=mesh),
            labels={"train": job.train.labels},
            units=PrivacyUnits("report", units[:-1], units),
            token_buckets=buckets,
            secure_noise=job.secure_noise,
            mesh=mesh,
        )
        self._state, self._step = self.stage.initial_state, 0

    def rows(self, step: int) -> np.ndarray:
        """The reports that take part in `step`, in rising order."""
        return _rows(self.stage.plan(step))

    def draws(self) -> Iterator[np.ndarray]:
        return map(self.rows, range(self.stage.stage.steps))

    def step(self, rows: np.ndarray) -> None:
        """The next step; its own sampler must have drawn these rows, in rising order."""
        self._plan = self.stage.plan(self._step)
        self._state, _ = self.stage.step(self._state, self._step, self._plan)
        jax.block_until_ready(self._state)
        if not np.array_equal(_rows(self._plan), rows):
            raise RuntimeError(f"step {self._step} drew other reports than it was told")
        self._step += 1

    def profile(self, folder: Path, rows: np.ndarray) -> None:
        """Writes a trace of one step, for TensorBoard's profiler or Perfetto."""
        with jax.profiler.trace(folder):
            self.step(rows)

    def clipped_sum(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(norm of each training report's gradient at the start, clipped sum by adapter tensor)."""
        graphdef, _, frozen = lora.split(self._model, self.job.stage.mode)
        train, buckets = self.job.train, token_buckets(self.job.config, self.job.train.lengths)
        clipped = partial(dp.clipped_gradient_sum, value_and_grad=gradient_by(buckets))
        share_sum = partial(make_share_sum(report_loss(graphdef, 0), clipped, buckets), devices=1)
        data = jax.device_put(LabelledData(packed(train), train.labels))
        plan = buckets.plan(np.arange(len(train)), train.lengths, buckets.capacity(len(train)))
        total, diagnostics = jax.jit(share_sum)(
            self.stage.initial_state.adapters,
            (frozen, self.job.center),
            data,
            plan,
            self.stage.stage.mechanism.l2_clip_norm,
            device=0,
        )
        norms = np.empty(len(train), np.float32)
        norms[plan.rows[plan.rows >= 0]] = np.asarray(diagnostics.norm)[plan.rows >= 0]
        return norms, self._by_name(total)

    def adapters(self) -> dict[str, np.ndarray]:
        return self._by_name(self._state.adapters)

    def _by_name(self, adapters: nnx.State) -> dict[str, np.ndarray]:
        mode = self.job.stage.mode
        graphdef, _, frozen = lora.split(self._model, mode)
        tensors = nnx.merge(graphdef, adapters, frozen).tensors(lora.trainable(mode))
        return {ADAPTER_PREFIX + name: np.array(value) for name, value in tensors.items()}

    def epsilon(self) -> dict[str, float]:
        mechanisms = [dp.SubsampledGaussian(**fields) for fields in self.job.mechanisms.values()]
        accountants = {"pld": dp.epsilon_pld, "rdp": dp.epsilon_rdp} if mechanisms else {}
        return {name: cost(mechanisms, self.job.delta) for name, cost in accountants.items()}

    def probabilities(self) -> np.ndarray:
        return self.stage.validation_probabilities(self._state)

    def widths(self, rows: np.ndarray) -> np.ndarray:
        buckets = self.stage.buckets
        return np.repeat(buckets.widths, self._plan.counts * np.array(buckets.rows))

    def savings(self) -> dict[str, Any]:
        return super().savings() | {"cached": self.stage.level > 0}

    def settings(self) -> dict[str, Any]:
        """Under the names that `TorchTrainer.settings` uses."""
        stage, buckets = self.stage.stage, self.stage.buckets
        mechanism, train = stage.mechanism, stage.settings
        trained = jax.tree.leaves(self.stage.initial_state.adapters)
        adam = train.optimizer == "adam"
        defaults = inspect.signature(optax.adam).parameters
        layer = next(iter(lora.adapted_layers(self._model).values()), None)
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
            "loss": TASKS[self._model.task].loss_name,
            "train reports": len(self.job.train),
            "steps": stage.steps,
            "sampling": "Poisson",
            "sampling probability": self.job.sampling_probability(),
            "noise multiplier": mechanism.noise_multiplier if mechanism else None,
            "clip norm": mechanism.l2_clip_norm if mechanism else None,
            "divided by": train.expected_batch_size,
            "clip factor": "C / norm" if mechanism else None,
            "optimizer": train.optimizer,
            "learning rate": train.learning_rate,
            "schedule": train.schedule,
            "optimizer betas": (defaults["b1"].default, defaults["b2"].default) if adam else None,
            "optimizer eps": defaults["eps"].default if adam else None,
            "optimizer momentum": None if adam else 0.9,
            "weight decay": 0,
            "attention": "jaxdp.models.layers",
            "padding": f"reports share rows of {' or '.join(map(str, buckets.widths))} positions"
            if buckets.reports
            else f"to one of {len(buckets.widths)} widths, batch sorted by length",
            "physical batch": f"about {buckets.widths[0] * buckets.rows[0]} tokens",
            "threads": f"{os.cpu_count()}, on {jax.device_count()} devices",
        } | super().settings()


def load_model(job: Job) -> ReportClassifier:
    """With the job's adapter, multiplying in its configuration's type."""
    dtype = compute_dtype(job.config)
    model, _ = load_classifier(
        Path(job.backbone),
        len(job.label_names),
        job.pooling,
        dtype=dtype if dtype == "bfloat16" else None,
        rngs=nnx.Rngs(0),
    )
    model.precision = dtype
    load_adapter(job.adapter, model)
    return model


def _rows(plan: Plan) -> np.ndarray:
    return np.sort(plan.rows[plan.rows >= 0])


def packed(reports: Reports) -> Packed:
    """Their token ids."""
    return Packed.from_lengths(reports.ids, reports.lengths)
