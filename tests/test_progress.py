# SPDX-License-Identifier: Apache-2.0
"""How far something is: a bar in a terminal; lines elsewhere, also while nothing moves."""

import io
import time

import pytest
from rich.console import Console

from jaxdp import progress
from jaxdp.progress import Display


@pytest.fixture
def written():
    return io.StringIO()


def test_a_log_gets_the_first_step_and_the_last(written):
    with Display(Console(file=written), "main stage", 1200, "steps", done=3) as display:
        for step in range(4, 1201):
            display.update(step, f"{step} reports/s")
        display.update(1200)
    assert written.getvalue().splitlines() == [
        "main stage: 4 of 1,200 steps, 4 reports/s",
        "main stage: 1,200 of 1,200 steps, 1200 reports/s",
    ]


def test_a_log_hears_now_and_then_even_where_nothing_moves(written, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    said = []
    with Display(Console(file=written), "start", 400, "steps", say=said.append) as display:
        deadline = time.monotonic() + 10
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert said[:2] == ["start: 0 of 400 steps"] * 2
        display(150)
        display(50)
        while said[-1] != "start: 200 of 400 steps" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "start: 150 of 400 steps" in said and said[-1] == "start: 200 of 400 steps"
    quiet = len(said)
    time.sleep(0.1)
    assert len(said) == quiet, "nothing is said once it is done"


def test_what_has_no_count_says_its_status(written):
    with Display(Console(file=written), "sweep", 3) as display:
        display.update(0.5, "1 of 3 members")
    assert written.getvalue() == "sweep: 1 of 3 members\n"


@pytest.mark.parametrize(("term", "draws"), [("xterm", True), ("dumb", False)])
def test_a_terminal_gets_a_bar_instead_unless_it_cannot_draw(written, monkeypatch, term, draws):
    said = []
    console = Console(file=written, force_terminal=True, _environ={"TERM": term})
    with Display(console, "public start", 4, "steps", say=said.append) as display:
        display(1)
        display._bar.refresh()
    assert ("━" in written.getvalue()) == draws == ("1 of 4 steps" in written.getvalue())
    assert said == ([] if draws else ["public start: 1 of 4 steps"])
