# SPDX-License-Identifier: Apache-2.0
"""What people see while a run goes on, and the private record of it.

The console shows counts, rates, epsilon and validation metrics. TensorBoard files under private/
also hold un-noised diagnostics. Neither ever holds a report's text or an id.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxdp import memory
from jaxdp.dp import ClipDiagnostics
from jaxdp.evaluation.inference import Watch, unwatched
from jaxdp.evaluation.metrics import scores
from jaxdp.models import lora
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.pretrained import LoadReport
from jaxdp.progress import Display
from jaxdp.runtime import COMPILED
from jaxdp.training.setup import Inputs
from jaxdp.training.stages import RunPlan, Stage

from .checkpoint import Position
from .directory import RunDirectory

_UNITS_OFF = 0.05
"""Share by which privacy.units may be off before people are told, and they alone: how many units
there are is private."""

_FOUND = "/jax/compilation_cache/cache_retrieval_time_sec"
_SPARED = "/jax/compilation_cache/compile_time_saved_sec"
seconds_by_event: Counter[str] = Counter()
"""JAX's events -> seconds that this process spent on them, or was spared by programs on disk."""


def _heard(event: str, seconds: float, **_) -> None:
    seconds_by_event[event] += seconds


jax.monitoring.register_event_duration_secs_listener(_heard)


def peak_memory() -> str:
    """The most memory that this process has held so far, on the host and, where it says, on the
    fullest device."""
    parts = [f"{memory.peak_memory() / 1e9:.2f} GB"]
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    on_device = max(s.get("peak_bytes_in_use", 0) for s in stats)
    if on_device:
        parts.append(f"{on_device / 1e9:.2f} GB on {jax.local_devices()[0].device_kind}")
    return "peak memory " + ", ".join(parts)


class SilentMonitor:
    """A monitor that shows and writes nothing: that of every process but the first."""

    def _nothing(self, *args) -> None:
        pass

    planned = loaded = patients = built = set_aside = stepped = evaluated = finished = _nothing

    def watch(self, name: str) -> Watch:
        return unwatched

    def stage(self, *args) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()


class Monitor:
    """Prints to `console`, and writes TensorBoard files once a stage runs."""

    keeps = True  # the run's directory stays after the run

    def __init__(self, console: Console):
        self._console = console
        self._began = time.perf_counter()

    def _say(self, text: str) -> None:
        self._console.print(f"[dim]{time.perf_counter() - self._began:6.1f} s[/]  {text}")

    def planned(self, lines: list[str]) -> None:
        """Noise is calibrated; see `preview.plan_lines`."""
        for line in lines:
            self._say(line)

    def loaded(self, inputs: Inputs, plan: RunPlan) -> None:
        """Reports are in memory."""
        sizes = ", ".join(f"{len(t):,} {split}" for split, t in inputs.tokens.items())
        self._say(f"{escape(inputs.dataset.name)}: {sizes} reports, {inputs.num_labels} labels")
        for what, count in inputs.dataset.counts.items():
            self._say(f"  {what}: {count:,}")
        if inputs.cut:
            self._say(f"  reports cut to data.max_length: {inputs.cut:,}")
        usual = inputs.backbone.usual_length
        read = [t.lengths.clip(max=inputs.max_length) for t in inputs.tokens.values()]
        if usual and (beyond := sum((lengths > usual).sum() for lengths in read)):
            self._say(f"  reports longer than the backbone's usual {usual} tokens: {beyond:,}")
        warnings = inputs.dataset.warnings()
        mechanism, there = plan.stages[-1].mechanism, inputs.units.num_units
        if mechanism and abs(there - mechanism.units) > _UNITS_OFF * mechanism.units:
            warnings.append(
                f"privacy.units is {mechanism.units:,}, but the training split has {there:,} "
                f"{inputs.units.unit}s: steps see {there / mechanism.units:.2g} times what is "
                "expected"
            )
        for warning in warnings:
            self._say(f"  [yellow]{escape(warning)}[/]")

    def patients(self, patients: dict[str, Any]) -> None:
        """The unit is one report, and patients have several; see `begin.patient_epsilons`."""
        for who, patient in patients.items():
            epsilon = patient["epsilon"]
            cost = "too large to claim" if epsilon is None else f"{epsilon:.4g}"
            self._say(f"  {who} patient: {patient['reports']:,} reports, epsilon together: {cost}")
        self._say("  [yellow]privacy.unit = patient would protect patients as a whole[/]")

    def watch(self, name: str) -> Watch:
        """Shows how far something long of that name is."""

        def begun(total: int, unit: str = "reports") -> Display:
            self._say(f"{name}: {total:,} {unit}")
            return Display(self._console, name, total, unit, say=self._say)

        return begun

    def built(self, model: ReportClassifier, weights: LoadReport, mode: str) -> None:
        """The model is in memory."""
        _, adapters, frozen = lora.split(model, mode)
        trained, rest = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (adapters, frozen))
        self._say(
            f"{type(model).__name__} on {jax.default_backend()}: {trained + rest:,} parameters, "
            f"{trained:,} trained ({100 * trained / (trained + rest):.2g} %)"
        )
        if weights.initialised:
            self._say(f"  not in the checkpoint: {', '.join(weights.initialised)}")

    def set_aside(self, saved: Position) -> None:
        """A checkpoint was unusable."""
        self._say(
            f"[yellow]the checkpoint of stage {saved.stage} step {saved.step} is damaged and set "
            "aside; going on from the one before[/]"
        )

    @contextlib.contextmanager
    def stage(
        self, run: RunDirectory, stages: tuple[Stage, ...], begin: Position
    ) -> Iterator[None]:
        """Shows progress of one stage while it runs."""
        # Imports torch where that is installed: 2 s that only a run should wait for.
        from tensorboardX import SummaryWriter

        stage = stages[begin.stage]
        # Steps of all stages on one axis; what a killed run wrote beyond its checkpoint is dropped.
        self._offset = sum(s.steps for s in stages[: begin.stage])
        self._writer = SummaryWriter(
            str(run.private / "tensorboard"), purge_step=self._offset + begin.step
        )
        self._progress = Display(
            self._console,
            stage.name,
            stage.steps,
            "steps",
            done=begin.step,
            status="compiling",
            say=self._say,
        )
        self._rates: list[float] = []
        self._before = seconds_by_event.copy()
        self._last_read = time.perf_counter()
        self._spent = ""
        self._clip_norm = stage.mechanism.l2_clip_norm if stage.mechanism else None
        if begin.step:
            self._say(f"{stage.name} resumes after step {begin.step}")
        try:
            with self._progress:
                yield
            rate = f"{self._rate():.0f} reports/s, " if self._rates else ""
            self._say(f"{stage.name} done, {rate}{peak_memory()}")
        finally:
            self._writer.close()

    def stepped(
        self, done: Position, diagnostics: ClipDiagnostics, reports: int, fill: float
    ) -> None:
        """A step's diagnostics are read, in order, of the `reports` that took part in it."""
        # Reading waits for the device, so the time between two readings is that of one step.
        now = time.perf_counter()
        self._rates.append(reports / (now - self._last_read))
        self._last_read = now
        if len(self._rates) == 1:
            spent = seconds_by_event - self._before  # what is not positive is left out
            found = f"; programs that were found spared {spent[_SPARED]:.1f} s"
            found = found if spent[_FOUND] else ""
            self._say(f"first step compiled in {spent[COMPILED]:.1f} s{found}")
        values = {"reports": reports, "fill": fill, "reports_per_second": self._rates[-1]}
        if reports:
            values["loss"] = diagnostics.loss.mean(dtype=np.float64)
        if reports and self._clip_norm:
            values["gradient_norm_median"] = np.median(diagnostics.norm)
            values["clipped_fraction"] = np.mean(diagnostics.norm > self._clip_norm)
        for name, value in values.items():
            self._writer.add_scalar(f"unnoised/{name}", value, self._offset + done.step)
        self._progress.update(done.step, f"{self._rate():.0f} reports/s {self._spent}".rstrip())

    def _rate(self) -> float:
        """Reports per second in the median step; the first of a process compiles and is left out
        where there are others."""
        return float(np.median(self._rates[1:] or self._rates))

    def evaluated(self, done: Position, metrics: dict[str, Any], epsilon: float | None) -> None:
        """Validation metrics after `done.step` steps."""
        self._spent = "" if epsilon is None else f"epsilon {epsilon:.3g}"
        for name, score in scores(metrics).items():
            self._writer.add_scalar(f"validation/{name}", score, self._offset + done.step)
        if epsilon is not None:
            self._writer.add_scalar("epsilon", epsilon, self._offset + done.step)
        rate = f"{self._rate():.0f} reports/s " if self._rates else ""
        self._say(
            f"step {done.step}: validation weighted F1 {metrics['weighted_f1']:.4f}, "
            f"{rate}{self._spent}"
        )
        self._last_read = time.perf_counter()  # evaluation is not part of the next step

    def finished(
        self, run: RunDirectory, statement: dict[str, Any], metrics: dict[str, Any] | None
    ) -> None:
        """Everything is written."""
        if metrics is not None:
            self._scores(metrics)
        epsilon = statement["epsilon"]
        if epsilon is None:
            self._say("[yellow]trained without privacy: the adapter may reveal reports[/]")
        else:
            epsilon = epsilon if isinstance(epsilon, str) else f"{epsilon:.4g}"
            self._say(
                f"epsilon [bold]{epsilon}[/] at delta {statement['delta']:g}, "
                f"per {statement['privacy_unit']}"
            )
        for warning in statement["warnings"]:
            self._say(f"[yellow]{warning}[/]")
        self._say(peak_memory())
        if self.keeps:
            self._say(f"may be shared under that statement: {run.release}")

    def _scores(self, metrics: dict[str, Any]) -> None:
        table = Table(title=f"Test split, {metrics['reports']:,} reports", title_justify="left")
        for column in ("label", "F1", "AUROC", "support", "predicted"):
            table.add_column(column, justify="left" if column == "label" else "right")
        for name, row in metrics["per_label"].items():
            auroc = "-" if row["auroc"] is None else f"{row['auroc']:.3f}"
            table.add_row(
                escape(name), f"{row['f1']:.3f}", auroc, str(row["support"]), str(row["predicted"])
            )
        self._console.print(table)
        accuracy = ""
        if "accuracy" in metrics:
            accuracy = "accuracy {accuracy:.4f}, balanced {balanced_accuracy:.4f}; "
        self._say(
            f"weighted F1 [bold]{metrics['weighted_f1']:.4f}[/], micro {metrics['micro_f1']:.4f}, "
            f"macro {metrics['macro_f1']:.4f}; {accuracy.format_map(metrics)}"
            f"log loss {metrics['log_loss']:.4f}, expected "
            f"calibration error {metrics['expected_calibration_error']:.4f}"
        )
