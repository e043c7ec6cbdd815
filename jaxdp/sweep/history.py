# SPDX-License-Identifier: Apache-2.0
"""What a member leaves about its course: private/history.jsonl, for progress, curves and costs."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from jaxdp import memory
from jaxdp.evaluation.metrics import scores
from jaxdp.run.checkpoint import Position
from jaxdp.run.monitor import Monitor

FILE = "history.jsonl"


class HistoryMonitor(Monitor):
    """A `Monitor` that prints to a member's log, and appends to its history: the beginning of each
    attempt, each evaluation on validation reports, progress between them every few seconds, and
    the end.

    Args:
        private: the member's folder.
        log: what people read of it.
        members: how many are trained in one program and share its time.
    """

    def __init__(self, private: Path, log: TextIO, members: int = 1):
        super().__init__(Console(file=log, width=100))
        self._file = private / FILE
        self._attempt = time.perf_counter()
        self._members = members
        self._shown = -10.0

    def _append(self, event: str, **values: Any) -> None:
        seconds = time.perf_counter() - self._attempt
        line = json.dumps({"event": event, "seconds": round(seconds, 3), **values})
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def loaded(self, *arguments) -> None:
        super().loaded(*arguments)  # from here on the run's lock is held
        self._append("attempt", members=self._members)

    def stepped(self, done: Position, *arguments) -> None:
        super().stepped(done, *arguments)
        if time.perf_counter() - self._shown > 5:
            self._shown = time.perf_counter()
            self._append("step", stage=done.stage, step=done.step)

    def evaluated(self, done: Position, metrics: dict[str, Any], epsilon: float | None) -> None:
        super().evaluated(done, metrics, epsilon)
        place = {"stage": done.stage, "step": done.step, "epsilon": epsilon}
        self._append("evaluated", **place, **scores(metrics))

    def finished(self, *arguments) -> None:
        super().finished(*arguments)
        self._append("finished", peak_memory=memory.peak_memory())


def read_history(member: Path) -> list[dict[str, Any]]:
    """Events in order; a line that a kill cut short is left out."""
    file, events = member / "private" / FILE, []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events


def evaluations(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One for each position, in order of training: what was repeated after a kill counts once."""
    found = {(e["stage"], e["step"]): e for e in events if e["event"] == "evaluated"}
    return [found[key] for key in sorted(found)]


def seconds(events: list[dict[str, Any]]) -> float:
    """Wall time of all attempts, up to the last event of each; of a program that trains several
    members, this one's part."""
    total = last = 0.0
    members = 1
    for event in events:
        if event["event"] == "attempt":
            total, members = total + last, event.get("members", 1)
        last = event["seconds"] / members
    return total + last


def peak_memory(events: list[dict[str, Any]]) -> int | None:
    """Bytes that the process had held at most when the member was finished; None if it is not."""
    peaks = [e["peak_memory"] for e in events if e["event"] == "finished"]
    return peaks[-1] if peaks else None
