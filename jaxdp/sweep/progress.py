# SPDX-License-Identifier: Apache-2.0
"""How far a sweep is, read from its members' folders: for the screen, whoever trains them."""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator

from rich.console import Console

from jaxdp.progress import Display
from jaxdp.training.stages import RunPlan

from .accounting import SweepPlan
from .history import evaluations, read_history, seconds
from .members import Member

_HEAD_WORK = 0.01
"""A report's share of work in a stage that starts from features, of one that starts from tokens."""


@dataclasses.dataclass(frozen=True)
class Status:
    """A member's course so far."""

    state: str
    """"waiting", "begun" or "finished"."""
    fraction: float
    """Of its work that is done, roughly."""
    steps: int
    """Taken, over all stages."""
    validation: float | None
    """Weighted F1 at the last evaluation; None before."""
    test: float | None
    """Weighted F1; None before the end."""
    epsilon: float | None
    """Of the steps up to the last evaluation; None without privacy."""
    seconds: float
    """Wall time, see `history.seconds`."""


def status(member: Member, plan: RunPlan) -> Status:
    """Read from the member's folder; never fails on what is missing there."""
    events = read_history(member.path)
    *_, last = ({}, *evaluations(events))
    done = [(e["stage"], e["step"]) for e in events if e["event"] in ("step", "evaluated")]
    stage, step = max(done, default=(0, 0))
    test = None
    with contextlib.suppress(OSError, ValueError, KeyError):
        metrics = json.loads((member.path / "metrics.json").read_text(encoding="utf-8"))
        test = metrics["test"]["weighted_f1"]
    steps = part = whole = 0
    for i, s in enumerate(plan.stages):
        taken = s.steps if i < stage else step * (i == stage)
        work = s.settings.expected_batch_size * (_HEAD_WORK if s.mode == "head" else 1)
        steps, part, whole = steps + taken, part + work * taken, whole + work * s.steps
    return Status(
        state="finished" if test is not None else "begun" if events else "waiting",
        fraction=1.0 if test is not None else 0.95 * part / whole,  # evaluation comes after
        steps=steps,
        validation=last.get("weighted_f1"),
        test=test,
        epsilon=last.get("epsilon"),
        seconds=seconds(events),
    )


@contextlib.contextmanager
def watching(plan: SweepPlan, console: Console) -> Iterator[None]:
    """While this thread trains, another one looks into the members' folders every two seconds, and
    shows a `Display`, and a line for each member that is finished."""
    began, stop = time.perf_counter(), threading.Event()

    def statuses() -> dict[str, Status]:
        return {name: status(member, plan.plans[name]) for name, member in plan.members.items()}

    first = statuses()
    at_start = sum(s.fraction for s in first.values())
    finished = {name for name, s in first.items() if s.state == "finished"}
    if finished:
        console.print(f"{len(finished)} members are finished already")

    def look(display: Display) -> None:
        now = statuses()
        for name, s in now.items():
            if s.state == "finished" and name not in finished:
                finished.add(name)
                epsilon = "no privacy" if s.epsilon is None else f"epsilon {s.epsilon:.4g}"
                console.print(
                    f"{name}: test weighted F1 {s.test:.4f}, {epsilon}, {clock(s.seconds)}"
                )
        done = sum(s.fraction for s in now.values())
        gained, elapsed = done - at_start, time.perf_counter() - began
        left = "" if gained < 0.02 else clock((len(now) - done) / gained * elapsed) + " left"
        text = f"{len(finished)} of {len(now)} members, {left}"
        running = [(n, s) for n, s in now.items() if s.state == "begun"]
        if running:
            # Of members in one program, the one that is best so far.
            name, s = max(running, key=lambda r: r[1].validation or 0.0)
            f1 = "" if s.validation is None else f", validation F1 {s.validation:.3f}"
            spent = "" if s.epsilon is None else f", epsilon {s.epsilon:.3g}"
            at_once = f"{len(running)} at once, best " if len(running) > 1 else ""
            text += f"; {at_once}{name} step {s.steps}{f1}{spent}"
        display.update(done, text)

    with Display(console, "sweep", len(plan.members)) as display:

        def watch() -> None:
            while not stop.wait(2.0):
                look(display)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            look(display)


def clock(duration: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    whole = round(duration)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def plan_table(
    plan: SweepPlan, estimates: dict[str, float | None]
) -> tuple[list[str], list[list[str]]]:
    """(header, rows): every member before it is trained."""
    rows = []
    for name in plan.members:
        noise = [f"{m.noise_multiplier:.4g}" for m in plan.plans[name].mechanisms().values()]
        epsilon, seconds = plan.plans[name].epsilon(), estimates[name]
        rows.append(
            [name, str(1 + plan.group_of(name)), ", ".join(noise) or "-"]
            + ["none" if epsilon is None else f"{epsilon:.4g}"]
            + [f"{plan.plans[name].delta:g}" if noise else "-"]
            + ["unknown" if seconds is None else clock(seconds)]
        )
    return ["member", "group", "noise multipliers", "epsilon", "delta", "time, rough"], rows


def joint_lines(plan: SweepPlan) -> list[str]:
    """What is paid for groups, and for everything on the same data, in words."""
    lines = []
    shared = plan.sweep.share_sampling
    how = "sharing each step's sample" if shared else "each drawing its own samples"
    for index in range(len(plan.groups)):
        if private := plan.private(index):
            epsilon = _claim(plan.group_epsilon(index))
            lines.append(f"group {index + 1}, {len(private)} private members {how}: {epsilon}")
    for cost in plan.joint_costs():
        lines.append(
            f"publishing the best of these {len(cost.members)} private members on {cost.source}, "
            f"or all of them, costs {_claim(cost.epsilon)} at delta {cost.delta:g} per {cost.unit}"
        )
    outside = [n for n, p in plan.plans.items() if not p.mechanisms()]
    if outside:
        lines.append(
            f"{len(outside)} members are trained without privacy: publishing one of those, or the "
            "best of all if it is one of those, has no guarantee"
        )
    return lines


def winner_lines(plan: SweepPlan) -> list[str]:
    """The best private member of each collection by validation F1, and what publishing it costs."""
    lines = []
    for cost in plan.joint_costs():
        found = {n: status(plan.members[n], plan.plans[n]) for n in cost.members}
        scores = {n: s.validation for n, s in found.items() if None not in (s.test, s.validation)}
        if not scores:
            continue
        best = max(scores, key=scores.get)
        lines += [
            f"best on validation: {best}, weighted F1 {scores[best]:.4f} (test "
            f"{found[best].test:.4f}; alone epsilon {plan.plans[best].epsilon():.4g})",
            f"publishing the best of these {len(cost.members)} costs {_claim(cost.epsilon)} at "
            f"delta {cost.delta:g} per {cost.unit}; the validation reports that chose it are not "
            "covered",
        ]
    return lines


def _claim(epsilon: float | None) -> str:
    return "more epsilon than can be claimed" if epsilon is None else f"epsilon = {epsilon:.4g}"
