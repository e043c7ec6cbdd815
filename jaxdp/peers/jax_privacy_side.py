# SPDX-License-Identifier: Apache-2.0
"""`jax_privacy.clipped_grad` on our model, as its documentation teaches it."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
import optax

from jaxdp.models import lora
from jaxdp.training.randomness import RunSecret
from jaxdp.training.step import LabelledData
from jaxdp.training.trainer import report_loss

from .jax_side import JaxSide, load_model, packed
from .job import MAIN, Job


class JaxPrivacy(JaxSide):
    """Steps only. Reports are padded to data.max_length, the batch to a fixed number of slots in
    the order that lets it stop early at the empty ones, `microbatch_size` as the user chooses it.
    Model, loss, data on the device, optimizer and donation are as in our own step.
    """

    def __init__(self, job: Job, physical_batch: int):
        self.job, self.physical_batch = job, physical_batch
        mechanism, model = job.mechanisms[MAIN], load_model(job)
        graphdef, adapters, frozen = lora.split(model, job.stage.mode)
        self._frozen = (lora.rounded_once(model, frozen), 0.0)
        self._data = jax.device_put(LabelledData(packed(job.train), job.train.labels))
        loss = report_loss(graphdef, 0)
        clip_norm, self._batch = mechanism["l2_clip_norm"], mechanism["expected_batch_size"]
        noise = jax_privacy.noise_addition.gaussian_privatizer(
            stddev=mechanism["noise_multiplier"] * clip_norm,
            prng_key=jax.random.key(RunSecret.create(0).init_seed() % 2**32),
        )
        optimizer = optax.chain(
            noise, optax.scale(1 / self._batch), optax.adam(job.stage.learning_rate)
        )

        def step(state, frozen, data, rows, *, microbatch_size):
            adapters, optimizer_state = state
            values, lengths = data.reports.gather(rows, job.max_length)
            clipped = jax_privacy.clipped_grad(
                loss,
                l2_clip_norm=clip_norm,
                batch_argnums=(2, 3, 4),
                keep_batch_dim=False,
                microbatch_size=microbatch_size,
            )
            labels = data.labels[jnp.maximum(rows, 0)]
            total = clipped(adapters, frozen, values, lengths, labels, is_padding_example=rows < 0)
            updates, optimizer_state = optimizer.update(total, optimizer_state, adapters)
            return optax.apply_updates(adapters, updates), optimizer_state

        self._jitted = jax.jit(step, static_argnames="microbatch_size", donate_argnums=0)
        adapters = jax.tree.map(jnp.copy, adapters)
        self._state = (adapters, optimizer.init(adapters))

    def step(self, rows: np.ndarray) -> None:
        size = self.physical_batch
        # More are drawn less than once in 10^15 steps.
        slots = math.ceil((self._batch + 8 * math.sqrt(self._batch)) / size) * size
        (padded,) = jax_privacy.batch_selection.split_and_pad_global_batch(
            rows.astype(np.int32), slots, size
        )
        self._state = self._jitted(
            self._state, self._frozen, self._data, padded, microbatch_size=size
        )
        jax.block_until_ready(self._state)

    def widths(self, rows: np.ndarray) -> np.ndarray:
        size = self.physical_batch
        return np.full(math.ceil(len(rows) / size) * size, self.job.max_length)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {
            "framework": f"jax_privacy {jax_privacy.__version__}, jax {jax.__version__}",
            "padding": "fixed",
            "physical batch": f"{self.physical_batch} reports",
            "threads": os.cpu_count(),
        }
