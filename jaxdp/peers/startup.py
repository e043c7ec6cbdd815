# SPDX-License-Identifier: Apache-2.0
"""The time from starting Python to the first step of `scripts/train.py`, and where it goes."""

import contextlib
import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxdp import assets
from jaxdp.config import Config
from jaxdp.run.directory import RunError
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor, seconds_by_event
from jaxdp.run.train import train
from jaxdp.runtime import COMPILED, prepare

from .machine import environment
from .process import Failed, Process

_COMPILING = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    COMPILED,
)


class _FirstStepTaken(Exception):
    pass


class _Marks(Monitor):
    """Notes when each part of a run ends, and how much of it was spent compiling; then stops."""

    def __init__(self, began: float):
        super().__init__(Console(file=sys.stderr))
        self.parts: dict[str, dict[str, float]] = {}
        self._last, self._compiled = began, 0.0

    def mark(self, part: str) -> None:
        now, compiled = time.time(), sum(seconds_by_event[event] for event in _COMPILING)
        self.parts[part] = {"seconds": now - self._last, "compiling": compiled - self._compiled}
        self._last, self._compiled = now, compiled

    def planned(self, *arguments) -> None:
        super().planned(*arguments)
        self.mark("calibration")

    def loaded(self, *arguments) -> None:
        super().loaded(*arguments)
        self.mark("data")

    def built(self, *arguments) -> None:
        super().built(*arguments)
        self.mark("weights")

    @contextlib.contextmanager
    def stage(self, run, stages, begin):
        self._stage = stages[begin.stage].name
        self.mark(f"before the {self._stage}: frozen layers, mean feature, state")
        with super().stage(run, stages, begin):
            self.mark(f"TensorBoard writer, {self._stage}")
            yield
            self.mark(f"rest of the {self._stage}")

    def stepped(self, done, *arguments) -> None:
        super().stepped(done, *arguments)
        if done.step == 1:
            self.mark(f"first step of the {self._stage}")
            if self._stage == "main stage":
                raise _FirstStepTaken


def measure(config: Config, repeats: int, platform: str = "cpu") -> dict[str, Any]:
    """Seconds to the first step in fresh processes: once with nothing kept from before but what was
    fetched, then `repeats` times with the compiled programs and the public start, and as often with
    data.cache as well, which keeps token ids and frozen layers.

    JSON-ready: "cold"; "warm" and "cached" run by run. "parts" are in order, up to the first step
    of the main stage, each with its seconds and how many of them went into compiling;
    "first_step_seconds" is up to the first step of the first stage.

    Raises:
        RunError: the run could not be started.
    """
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "kept"
        kept.mkdir()
        for package in assets.cache_directory().glob("*-*"):
            (kept / package.name).symlink_to(package)
        data = dataclasses.replace(config.data, cache=str(Path(folder) / "cache"))
        cached = dataclasses.replace(config, data=data)
        # The cold one fills the cache; the warm ones do not look into it.
        configs = [cached, *[config] * repeats, *[cached] * repeats]
        runs = [_first_step(each, platform, Path(folder), n) for n, each in enumerate(configs)]
    return {"cold": runs[0], "warm": runs[1 : repeats + 1], "cached": runs[repeats + 1 :]}


def _first_step(config: Config, platform: str, folder: Path, number: int) -> dict[str, Any]:
    kept_from = str(jax.config.jax_persistent_cache_min_compile_time_secs)
    variables = environment(platform) | {
        "JAXDP_CACHE": str(folder / "kept"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": kept_from,
    }
    with Process(folder / f"{number}.log", **variables) as process:
        try:
            place = config.below(folder, f"run{number}")
            parts = process.call(_start, place, process.began)
        except Failed as error:
            raise RunError(f"training did not start: {error}") from None
    first = next(i for i, name in enumerate(parts) if name.startswith("first step"))
    seconds = [part["seconds"] for part in parts.values()]
    return {"parts": parts, "first_step_seconds": sum(seconds[: first + 1])}


def _start(config: Config, began: float) -> dict[str, dict[str, float]]:
    prepare()
    marks = _Marks(began)
    marks.mark("imports")
    with contextlib.suppress(_FirstStepTaken), Interrupt() as interrupt:
        train(config, resume=False, interrupt=interrupt, monitor=marks)
    return marks.parts
