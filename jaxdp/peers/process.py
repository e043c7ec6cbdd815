# SPDX-License-Identifier: Apache-2.0
"""A Python process for work whose memory, time and libraries must not mix with others.

Imports neither jax nor torch: what the process holds is what its work needs.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any


class Failed(RuntimeError):
    """What was asked of a process did not work; the message is one line."""


class Process(ProcessPoolExecutor):
    """Calls functions when it is told to, and sleeps otherwise; `shutdown` ends it.

    Args:
        log: file for what it prints, and where errors came from; by default nowhere.
        environment: variables, set before anything is imported.
    """

    def __init__(self, log: Path = Path(os.devnull), **environment: str):
        self._log, self.began = log, time.time()
        super().__init__(1, multiprocessing.get_context("spawn"), _begin, (log, environment))

    def call(self, function: Callable, *arguments: Any) -> Any:
        """function(*arguments), there.

        Raises:
            Failed: it raised an error, or the process ended.
        """
        try:
            result, error = self.submit(_call, function, arguments).result()
        except BrokenProcessPool:
            lines = self._log.read_text("utf-8", "replace").strip().splitlines()
            raise Failed(f"ended: {lines[-1][:200] if lines else 'no output'}") from None
        if error:
            raise Failed(error)
        return result


def _begin(log: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _call(function: Callable, arguments: tuple) -> tuple[Any, str | None]:
    try:
        return function(*arguments), None
    except Exception as error:  # not every exception can be pickled
        traceback.print_exc()
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
