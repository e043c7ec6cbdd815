# SPDX-License-Identifier: Apache-2.0
"""How far something long is: a bar in a terminal, a line now and then elsewhere."""

import threading
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY = 30.0  # seconds between two lines where no bar can be drawn


class Display:
    """Shows how far one thing is while its `with` block runs.

    A terminal gets a bar, which is gone at the end. Anything else, such as a log, gets a line at
    the first sign of progress, one when all is done, and one every `LINE_EVERY` seconds, also while
    nothing moves: a first step may compile for minutes.

    Args:
        console: to show it on.
        name: of the thing.
        total: of its work; None if that is not known.
        unit: that work is counted in; None where only the status of `update` says how far it is.
        done: of the work, before.
        status: to begin with.
        say: prints a line; None is the console.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        total: float | None = None,
        unit: str | None = None,
        *,
        done: float = 0,
        status: str = "",
        say: Callable[[str], None] | None = None,
    ):
        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")]
        columns += [TimeRemainingColumn()] if unit else []
        self._bar = Progress(*columns, console=console, transient=True)
        self._bar.add_task(name, total=total, text="")
        (self._task,) = self._bar.tasks
        self._unit = unit
        self._say = say or console.print
        # Rich draws nothing in a terminal that cannot move its cursor.
        self._draws = console.is_terminal and not console.is_dumb_terminal
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)
        self._set(done, status)
        self._moved = False

    def __enter__(self) -> "Display":
        (self._bar if self._draws else self._ticker).start()
        return self

    def __exit__(self, *_) -> None:
        if self._draws:
            self._bar.stop()
        else:
            self._stop.set()
            self._ticker.join()

    def update(self, done: float, status: str = "") -> None:
        """So much is done now."""
        ended = self._task.finished
        self._set(done, status)
        if not self._draws and (not self._moved or self._task.finished > ended):
            self._line()
        self._moved = True

    def __call__(self, more: float) -> None:
        """So much more is done."""
        self.update(self._task.completed + more)

    def _set(self, done: float, status: str) -> None:
        count = f"{done:,} of {self._task.total:,} {self._unit}" if self._unit else ""
        text = ", ".join(filter(None, (count, status)))
        self._bar.update(self._task.id, completed=done, text=text)

    def _tick(self) -> None:
        while not self._stop.wait(LINE_EVERY):
            self._line()

    def _line(self) -> None:
        self._say(f"{self._task.description}: {self._task.fields['text']}")
