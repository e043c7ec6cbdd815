# SPDX-License-Identifier: Apache-2.0
"""A sweep of tiny members."""

import json
from pathlib import Path

import numpy as np
from helpers_training import LABELS, smoke_settings

from jaxdp.evaluation.predictions import TestPredictions
from jaxdp.sweep.accounting import SweepPlan
from jaxdp.sweep.members import Grid, Sweep


def tiny_sweep(workspace: Path, axes=None, **changes) -> Sweep:
    """Two levels of privacy, two seeds: four members of seconds each."""
    base = smoke_settings(workspace, run__research_seed=None)
    axes = {"privacy.epsilon": (0.5, None)} if axes is None else axes
    grids = changes.pop("grids", [Grid("tiny", base, axes)])
    fields = {"name": "sweep", "seeds": 2, "dir": str(workspace / "runs"), "research_seed": 3}
    return Sweep(grids=grids, **fields | changes)


def write_sweep_file(workspace: Path, seeds: int = 2) -> Path:
    """`tiny_sweep(workspace)` as a file for scripts/sweep.py."""
    file = workspace / "sweep.py"
    tests = Path(__file__).parent
    file.write_text(
        f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(tests)!r})\n"
        f"from helpers_sweep import tiny_sweep\n"
        f"def get_sweep():\n    return tiny_sweep(Path({str(workspace)!r}), seeds={seeds})\n"
    )
    return file


def pretend_finished(plan: SweepPlan, reports: int = 80, hostile: str = "") -> None:
    """Fills every member's folder as a run would, with made-up answers: better with less noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (reports, len(LABELS))).astype(np.int8)
    task = next(iter(plan.members.values())).config.data.task
    if task == "multi-class":
        labels = np.eye(len(LABELS), dtype=np.int8)[rng.integers(0, len(LABELS), reports)]
    names = tuple(name + hostile for name in LABELS)
    for member in plan.members.values():
        private = member.path / "private"
        private.mkdir(parents=True, exist_ok=True)
        epsilon = member.config.privacy.epsilon
        noise = 0.25 if epsilon is None else 0.3 + 0.3 / epsilon
        answers = np.clip(0.5 * labels + 0.25 + noise * rng.normal(size=labels.shape), 0, 1)
        rows = np.arange(reports)
        kept = TestPredictions(answers.astype(np.float32), labels, rows, rows, names)
        (private / "test_predictions.npz").write_bytes(kept.to_bytes())
        (member.path / "config.json").write_text(json.dumps(member.config.to_dict()))
        (member.path / "metrics.json").write_text(
            json.dumps({"note": "", "test": kept.metrics(task)})
        )
        scores = [(0, 2, 0.3), (0, 4, 0.5), (1, 3, 0.55), (1, 6, 0.6 + 0.01 * member.seed)]
        events = [{"event": "attempt", "seconds": 0.1}]
        for i, (stage, step, f1) in enumerate(scores):
            spent = None if epsilon is None else epsilon * (i + 1) / 4
            events.append(
                {"event": "evaluated", "seconds": 1.0 + i, "stage": stage, "step": step}
                | {"epsilon": spent, "weighted_f1": f1, "micro_f1": f1, "macro_f1": f1}
            )
        events.append({"event": "finished", "seconds": 5.0, "peak_memory": 10**9})
        text = "".join(json.dumps(e) + "\n" for e in events)
        (private / "history.jsonl").write_text(text)
