# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM as a request to stop at the next step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupt:
    """Context in which the first SIGINT or SIGTERM only sets `received`; a second one kills."""

    def __init__(self):
        self.received: signal.Signals | None = None
        self._error: Callable[[], BaseException] | None = None

    @contextmanager
    def raising(self, error: Callable[[], BaseException]) -> Iterator[None]:
        """Within, the request raises `error()` wherever it comes: nothing there needs an end."""
        self._error = error
        try:
            if self.received is not None:
                raise error()
            yield
        finally:
            self._error = None

    def __enter__(self) -> "Interrupt":
        self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        del frame
        self.received = signal.Signals(number)
        signal.signal(number, signal.SIG_DFL)
        if self._error is not None:
            raise self._error()
