# SPDX-License-Identifier: Apache-2.0
"""DP training in PyTorch as Opacus' documentation teaches it."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import opacus
import peft
import torch
import transformers
from opacus.utils.batch_memory_manager import BatchMemoryManager
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from .job import MAIN, Job, Reports
from .side import Side
from .torch_model import build, trained

SCHEDULES = {
    "constant": lambda optimizer, steps: lr_scheduler.ConstantLR(optimizer, factor=1.0),
    "linear": lambda optimizer, steps: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps),
    "cosine": lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps),
}
"""train.schedule -> the learning rate's course."""


class ReportLoss(torch.nn.Module):
    """What `models.tasks` has for this config.data.task; unknown labels (-1) count as 0.

    The mean over reports, or one value per report for reduction "none", which ghost clipping sets.
    """

    reduction = "mean"

    def __init__(self, task: str):
        super().__init__()
        self.of_labels = task == "multi-label"
        binary, one_class = "binary cross-entropy, mean over labels", "cross-entropy over classes"
        self.name = binary if self.of_labels else one_class

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        targets = labels.clamp(min=0).to(logits.dtype)
        if self.of_labels:
            losses = functional.binary_cross_entropy_with_logits(
                logits, targets, weight=(labels >= 0).to(logits.dtype), reduction="none"
            ).mean(dim=1)
        else:
            losses = functional.cross_entropy(logits, targets, reduction="none")
        return losses if self.reduction == "none" else losses.mean()

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if self.of_labels else logits.softmax(-1)


class TorchTrainer(Side):
    """PyTorch with scaled dot product attention, in training mode.

    Opacus is told what it would otherwise work out: noise multiplier, sampling rate, and expected
    batch size. Its own are far too large at small epsilons, or rounded (the rate to one over a
    whole number).

    Args:
        job: what to train, and from where.
        method: "hooks" (Opacus' per-example gradients), "ghost" (its ghost clipping), or "none".
        padding: "fixed", to data.max_length; "dynamic", to the longest report of a physical batch;
            or "sorted", the same of a logical batch that is sorted by length before it is cut,
            which Opacus does not do by itself but its user can.
        physical_batch: most reports computed at once.
        device: of torch.
        dtype: of matrix products: "float32"; "tensorfloat32", to which a GPU rounds operands;
            "bfloat16", in which the frozen encoder then is, but not its adapters, nor the head;
            "autocast", torch's rules for bfloat16, in which hooks fail.
    """

    def __init__(
        self,
        job: Job,
        *,
        method: str = "hooks",
        padding: str = "dynamic",
        physical_batch: int = 64,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        self.job, self.physical_batch = job, physical_batch
        self._method, self._padding = method, padding
        self._device, self._dtype = torch.device(device), dtype
        self._on_gpu = self._device.type == "cuda"
        self._fixed = job.max_length if padding == "fixed" else None
        torch.manual_seed(torch.seed() if job.seed is None else job.seed)
        if self._on_gpu:
            narrow = dtype == "tensorfloat32"
            torch.set_float32_matmul_precision("high" if narrow else "highest")
        encoder_dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self._model = self._peft_model = build(job, self._device, encoder_dtype)
        self._trained, stage = trained(self._model), job.stage
        if stage.optimizer == "adam":
            optimizer = torch.optim.Adam(self._trained.values(), stage.learning_rate)
        else:
            optimizer = torch.optim.SGD(self._trained.values(), stage.learning_rate, momentum=0.9)
        self._schedule = SCHEDULES[stage.schedule](optimizer, stage.steps)
        self._sampler = UniformWithReplacementSampler(
            num_samples=len(job.train), sample_rate=job.sampling_probability(), steps=stage.steps
        )
        self._loss = self._criterion = ReportLoss(job.task)
        self._optimizer, self._engine = optimizer, None
        if method != "none":
            self._make_private(job.mechanisms[MAIN])

    @staticmethod
    def prepare() -> None:
        torch.set_num_threads(os.cpu_count() or 1)

    def _make_private(self, mechanism: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Secure RNG turned off")
            self._engine = opacus.PrivacyEngine()
        self._model, self._optimizer, *criterion, _ = self._engine.make_private(
            module=self._model,
            optimizer=self._optimizer,
            criterion=self._loss,
            data_loader=DataLoader(range(len(self.job.train)), batch_sampler=self._sampler),
            noise_multiplier=mechanism["noise_multiplier"],
            max_grad_norm=mechanism["l2_clip_norm"],
            poisson_sampling=False,  # the sampler is Opacus' Poisson sampler, at the exact rate
            grad_sample_mode=self._method,
        )
        if criterion:
            (self._criterion,) = criterion
        self._model.forbid_grad_accumulation()
        self._optimizer.expected_batch_size = mechanism["expected_batch_size"]
        self._optimizer.attach_step_hook(
            self._engine.accountant.get_optimizer_hook_fn(self._sampler.sample_rate)
        )

    def draws(self) -> Iterator[list[int]]:
        """By Opacus' Poisson sampler."""
        return iter(self._sampler)

    def step(self, rows: Sequence[int]) -> None:
        """One logical step on these rows of `job.train`: clipped, summed, noised, applied.

        Without rows it is a step of noise alone.
        """
        rows = self._ordered(rows)
        if self._engine is not None:
            loader = DataLoader(
                range(len(self.job.train)), batch_sampler=[rows], collate_fn=self._batch
            )
            with BatchMemoryManager(
                data_loader=loader,
                max_physical_batch_size=self.physical_batch,
                optimizer=self._optimizer,
            ) as batches:
                for batch in batches:
                    self._loss_of(batch).backward()
                    self._optimizer.step()  # of the parameters: after the last batch only
                    self._optimizer.zero_grad()
        else:
            for part in self.split(rows):
                share = max(len(part), 1) / self.job.stage.expected_batch_size
                (self._loss_of(self._batch(part)) * share).backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        self._schedule.step()
        if self._on_gpu:
            torch.cuda.synchronize()

    def clipped_sum(self, rows: Sequence[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(norm of each row's gradient, clipped sum by adapter tensor): as Opacus computes them, or
        for method "none" by an ordinary backward pass for each report."""
        if self._engine is None:
            return self._clipped_sum_by_loop(rows)
        norms = []
        for part in self.split(rows):
            self._loss_of(self._batch(part)).backward()
            if self._method == "ghost":
                norms.append(self._model.per_sample_gradient_norms)
            else:
                samples = [g.flatten(1) for g in self._optimizer.grad_samples]
                norms.append(torch.cat(samples, dim=1).norm(dim=1))
            self._optimizer.signal_skip_step(True)
            self._optimizer.step()
            self._optimizer.zero_grad()
        sums = {name: p.summed_grad.numpy(force=True) for name, p in self._trained.items()}
        for parameter in self._trained.values():
            parameter.summed_grad = None
        return torch.cat(norms).numpy(force=True), sums

    def _clipped_sum_by_loop(self, rows: Sequence[int]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        norms, total = [], {name: torch.zeros_like(p) for name, p in self._trained.items()}
        clip_norm = self.job.mechanisms[MAIN]["l2_clip_norm"]
        for row in rows:
            self._loss_of(self._batch([row])).backward()
            norm = torch.cat([p.grad.flatten() for p in self._trained.values()]).norm()
            for name, parameter in self._trained.items():
                total[name] += parameter.grad * (clip_norm / norm).clamp(max=1.0)
            norms.append(norm)
            self._optimizer.zero_grad()
        sums = {name: g.numpy(force=True) for name, g in total.items()}
        return torch.stack(norms).numpy(force=True), sums

    def adapters(self) -> dict[str, np.ndarray]:
        return {name: p.numpy(force=True).copy() for name, p in self._trained.items()}

    def probabilities(self) -> np.ndarray:
        reports = self.job.test
        result = np.empty(reports.labels.shape, np.float32)
        self._model.eval()
        with torch.inference_mode():
            for rows in self.split(np.argsort(reports.lengths, kind="stable")):
                ids, mask, _ = self._batch(rows, reports)
                result[rows] = self._loss.probabilities(self._model(ids, mask)).numpy(force=True)
        self._model.train()
        return result

    def widths(self, rows: np.ndarray) -> np.ndarray:
        lengths = [self.job.train.lengths[part] for part in self.split(self._ordered(rows))]
        return np.concatenate([np.full(len(x), self._fixed or x.max(initial=1)) for x in lengths])

    def savings(self) -> dict[str, Any]:
        return {"backward_passes": 2 if self._method == "ghost" else 1}

    def epsilon(self) -> dict[str, float]:
        """By Opacus' accountants."""
        if self._engine is None:
            return {}
        before = [
            (m["noise_multiplier"], self.job.sampling_probability(name), m["steps"])
            for name, m in self.job.mechanisms.items()
            if name != MAIN
        ]
        result = {}
        for kind in ("prv", "rdp"):
            accountant = opacus.accountants.create_accountant(kind)
            accountant.history = before + self._engine.accountant.history
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # log(0) at rate 1, deprecated calls
                result[kind] = float(accountant.get_epsilon(delta=self.job.delta))
        return result

    def device_memory(self) -> int:
        return torch.cuda.max_memory_allocated() if self._on_gpu else 0

    def settings(self) -> dict[str, Any]:
        optimizer, plain = self._optimizer, self._schedule.optimizer
        stage, private = self.job.stage, self._engine is not None
        encoder = self._peft_model.base_model.model.encoder
        adapter = self._peft_model.peft_config["default"]
        dropouts = [m.p for m in self._model.modules() if isinstance(m, torch.nn.Dropout)]
        return {
            "framework": f"torch {torch.__version__}, transformers {transformers.__version__}, "
            f"PEFT {peft.__version__}, Opacus {opacus.__version__}",
            "per-example gradients": self._method,
            "backbone layers": encoder.config.num_hidden_layers,
            "pooling": self.job.pooling,
            "trained tensors": len(self._trained),
            "trained numbers": sum(p.numel() for p in self._trained.values()),
            "lora rank": adapter.r,
            "lora alpha": adapter.lora_alpha,
            "dropout": max([*dropouts, adapter.lora_dropout]),
            "loss": self._loss.name,
            "train reports": len(self.job.train),
            "steps": self._sampler.steps,
            "sampling": "Poisson",
            "sampling probability": self._sampler.sample_rate,
            "noise multiplier": optimizer.noise_multiplier if private else None,
            "clip norm": optimizer.max_grad_norm if private else None,
            "divided by": optimizer.expected_batch_size if private else stage.expected_batch_size,
            "clip factor": "C / (norm + 1e-6)" if private else None,
            "optimizer": type(plain).__name__.lower(),
            "learning rate": self._schedule.base_lrs[0],
            "schedule": stage.schedule,
            "optimizer betas": plain.defaults.get("betas"),
            "optimizer eps": plain.defaults.get("eps"),
            "optimizer momentum": plain.defaults.get("momentum"),
            "weight decay": plain.defaults["weight_decay"],
            "device": torch.cuda.get_device_name() if self._on_gpu else "cpu",
            "arithmetic": self._arithmetic(encoder.dtype),
            "attention": encoder.config._attn_implementation,
            "padding": self._padding,
            "physical batch": f"at most {self.physical_batch} reports",
            "threads": torch.get_num_threads(),
        }

    def split(self, rows: Sequence[int]) -> list[np.ndarray]:
        """The physical batches of a logical one, cut as Opacus' BatchMemoryManager cuts them."""
        return np.array_split(rows, max(math.ceil(len(rows) / self.physical_batch), 1))

    def _ordered(self, rows: Sequence[int]) -> Sequence[int]:
        if self._padding != "sorted":
            return rows
        return rows[np.argsort(-self.job.train.lengths[rows], kind="stable")]

    def _loss_of(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        ids, mask, labels = batch
        autocast = self._dtype == "autocast"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=autocast):
            return self._criterion(self._model(ids, mask).float(), labels)

    def _arithmetic(self, frozen: torch.dtype) -> str:
        if self._dtype == "autocast":
            return "bfloat16, autocast"
        narrow = self._on_gpu and torch.get_float32_matmul_precision() == "high"
        return "tensorfloat32" if narrow else str(frozen).removeprefix("torch.")

    def _batch(
        self, rows: Sequence[int], reports: Reports | None = None
    ) -> tuple[torch.Tensor, ...]:
        """(ids [B, L], mask [B, L], labels [B, num_labels]) of training reports, or of others.

        transformers' attention fails on B = 0, which Poisson sampling draws at times, so no reports
        become one whose labels are all unknown: its loss and its gradient are zero.
        """
        reports = self.job.train if reports is None else reports
        tokens = reports.token_ids(rows) or [np.zeros(1, np.int32)]
        labels = reports.labels[rows] if len(rows) else np.full_like(reports.labels[:1], -1)
        lengths = np.array([len(ids) for ids in tokens])
        mask = np.arange(self._fixed or lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate(tokens)
        batch = (ids, mask.astype(np.int64), labels)
        return tuple(torch.from_numpy(x).to(self._device) for x in batch)
