# SPDX-License-Identifier: Apache-2.0
"""Contenders in JAX: jaxdp, with privacy or without, and JAX-Privacy on jaxdp's model.

python -m jaxdp.benchmark.jax_side JOB_FOLDER BEGAN '{"kind": "private"}'
"""

import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
import optax
from flax import nnx

from jaxdp.baseline.job import MAIN, Job
from jaxdp.comparison.ours import OurTrainer
from jaxdp.data.packed import Packed
from jaxdp.evaluation.inference import packed_logits
from jaxdp.models import lora
from jaxdp.models.peft import load_adapter
from jaxdp.models.pretrained import load_classifier, read_config
from jaxdp.runtime import prepare
from jaxdp.training.randomness import RunSecret
from jaxdp.training.step import LabelledData, multilabel_loss

from .flops import StepFlops
from .worker import PHYSICAL, serve


class Ours:
    """`training.StageTrainer` on a job, as `scripts/train.py` uses it."""

    def __init__(self, job: Job, private: bool = True):
        if not private:  # at the same sampling probability: all jobs have units = reports
            job = dataclasses.replace(job, mechanisms={})
        self._job = job
        self._trainer = OurTrainer(job)
        self._stage = self._trainer.stage
        self._state = self._stage.initial_state

    def step(self, step: int, rows: np.ndarray) -> float:
        self._plan = self._stage.plan(step)
        self._state, _ = self._stage.step(self._state, step, self._plan)
        jax.block_until_ready(self._state)
        drawn = self._plan.rows[self._plan.rows >= 0]
        if not np.array_equal(np.sort(drawn), rows):
            raise RuntimeError(f"step {step} drew other reports than it was told")
        return 0.0

    def widths(self, rows: np.ndarray) -> np.ndarray:
        buckets = self._stage.buckets
        return np.repeat(buckets.widths, self._plan.counts * np.array(buckets.rows))

    def flops(self) -> StepFlops:
        return count_flops(self._job, cached=self._stage.level > 0)

    def settings(self) -> dict[str, Any]:
        return self._trainer.settings()

    def profile(self, folder: str, step: int, rows: np.ndarray) -> None:
        """Writes a trace of one step, for TensorBoard's profiler or Perfetto."""
        with jax.profiler.trace(folder):
            self.step(step, rows)


class JaxPrivacy:
    """`jax_privacy.clipped_grad` on our model, as its documentation teaches it: reports padded to
    data.max_length, the batch to a fixed number of slots in the order that lets it stop early at
    the empty ones, `microbatch_size` as the user chooses it.

    Model, loss, data on the device, optimizer and donation are as in our own step.
    """

    def __init__(self, job: Job, physical_batch: int = PHYSICAL[0]):
        self.physical_batch = physical_batch
        self._job, config = job, job.config
        model, _ = load_classifier(
            Path(job.backbone), len(job.label_names), job.pooling, rngs=nnx.Rngs(0)
        )
        load_adapter(job.adapter, model)
        graphdef, adapters, self._frozen = lora.split(model, config.train.mode)
        train = Packed.from_lengths(job.train.ids, job.train.lengths)
        self._data = jax.device_put(LabelledData(train, job.train.labels))

        def loss(adapters, frozen, ids, length, labels):
            merged = nnx.merge(graphdef, adapters, frozen)
            return multilabel_loss(packed_logits(merged, ids, length, 0), labels)

        mechanism = job.mechanisms[MAIN]
        clip_norm, batch = mechanism["l2_clip_norm"], mechanism["expected_batch_size"]
        noise = jax_privacy.noise_addition.gaussian_privatizer(
            stddev=mechanism["noise_multiplier"] * clip_norm,
            prng_key=jax.random.key(RunSecret.create(0).init_seed() % 2**32),
        )
        optimizer = optax.chain(
            noise, optax.scale(1 / batch), optax.adam(config.train.learning_rate)
        )
        width = config.data.max_length

        def step(state, frozen, data, rows, *, microbatch_size):
            adapters, optimizer_state = state
            values, lengths = data.reports.gather(rows, width)
            clipped = jax_privacy.clipped_grad(
                loss,
                l2_clip_norm=clip_norm,
                batch_argnums=(2, 3, 4),
                keep_batch_dim=False,
                microbatch_size=microbatch_size,
            )
            total = clipped(
                adapters,
                frozen,
                values,
                lengths,
                data.labels[jnp.maximum(rows, 0)],
                is_padding_example=rows < 0,
            )
            updates, optimizer_state = optimizer.update(total, optimizer_state, adapters)
            return optax.apply_updates(adapters, updates), optimizer_state

        self._jitted = jax.jit(step, static_argnames="microbatch_size", donate_argnums=0)
        self._programs: dict[int, Any] = {}
        self._slots = -(-int(batch + 8 * math.sqrt(batch)) // max(PHYSICAL)) * max(PHYSICAL)
        adapters = jax.tree.map(jnp.copy, adapters)
        self._state = (adapters, optimizer.init(adapters))

    def step(self, step: int, rows: np.ndarray) -> float:
        size = self.physical_batch
        (padded,) = jax_privacy.batch_selection.split_and_pad_global_batch(
            rows.astype(np.int32), self._slots, size
        )
        arguments = (self._state, self._frozen, self._data, padded)
        began = time.perf_counter()
        if size not in self._programs:
            lowered = self._jitted.lower(*arguments, microbatch_size=size)
            self._programs[size] = lowered.compile()
        compiling = time.perf_counter() - began
        self._state = self._programs[size](*arguments)
        jax.block_until_ready(self._state)
        return compiling

    def widths(self, rows: np.ndarray) -> np.ndarray:
        size = self.physical_batch
        return np.full(-(-len(rows) // size) * size, self._job.config.data.max_length)

    def flops(self) -> StepFlops:
        return count_flops(self._job, cached=False)

    def settings(self) -> dict[str, Any]:
        return {
            "framework": f"jax_privacy {jax_privacy.__version__}, jax {jax.__version__}",
            "padding": "fixed",
            "physical batch": f"{self.physical_batch} reports",
            "threads": os.cpu_count(),
        }


def count_flops(job: Job, *, cached: bool) -> StepFlops:
    """Of a report of this job in our model, which ends in the pooled token where that is all its
    head sees (`models.classifier.ReportClassifier.advance`)."""
    encoder, pooler = read_config(Path(job.backbone)).to_dict(), job.pooling == "cls"
    return StepFlops.of(
        encoder,
        labels=len(job.label_names),
        rank=job.config.lora.rank,
        adapted=len(job.config.lora.targets),
        first_layer=job.config.lora.first_layer(encoder["num_hidden_layers"]),
        pooler=pooler,
        cached=cached,
        pooled_only=pooler,
    )


def make(job: Job, kind: str) -> Ours | JaxPrivacy:
    """`kind` is private, plain or jax-privacy."""
    if kind == "jax-privacy":
        return JaxPrivacy(job)
    return Ours(job, private=kind == "private")


if __name__ == "__main__":
    prepare()
    serve(make)
