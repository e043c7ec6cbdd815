# SPDX-License-Identifier: Apache-2.0
"""Tiny private runs in processes of their own, made to be broken.

Every run is a fork of one process that has imported the libraries, but has not started JAX: a run
takes a second or two. What it must end with is known from an undisturbed run of the same secret.
"""

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers_training import WORDS, write_backbone  # noqa: E402

from jaxdp.cli import USER_ERRORS  # noqa: E402
from jaxdp.config import Config  # noqa: E402
from jaxdp.dp import Ledger  # noqa: E402
from jaxdp.run.interrupt import Interrupt  # noqa: E402
from jaxdp.run.monitor import Monitor  # noqa: E402
from jaxdp.run.train import train  # noqa: E402
from jaxdp.training.stages import plan_run  # noqa: E402

LABELS = ("normal", "effusion")
SETTINGS = {
    "data": {
        "source": "table",
        "labels": LABELS,
        "label_column": "labels",
        "patient_column": "patient",
        "max_length": 16,
    },
    "centering": {"l2_clip_norm": 4.0, "epsilon_share": 0.3},
    "head_stage": {"steps": 20, "expected_batch_size": 60.0, "noise_multiplier": 30.0},
    "lora": {"layers": "last:1"},
    "train": {
        "steps": 20,
        "expected_batch_size": 15.0,
        "microbatch_tokens": 128,
        "widths": 1,
    },
    "privacy": {
        "epsilon": 2.0,
        "delta": 1e-3,
        "unit": "patient",  # of reports, the statement gives epsilon for groups, which takes long
        "units": 60,
        "noise_multiplier": 20.0,
    },
    "run": {"name": "run", "checkpoint_every": 2, "eval_every": 20},
}
FINISHED, REFUSED, CRASHED = 0, 1, 2


class Lab:
    """Data, model, and the results of undisturbed runs, in `scratch`."""

    def __init__(
        self,
        scratch: Path,
        compiled: str | None,
        secure_noise: bool = False,
        changes: dict[str, dict] | None = None,
    ):
        self.scratch = scratch
        self.changes = changes or {}
        self.compiled = compiled or str(scratch / "compiled")
        self.secure_noise = secure_noise
        self.runs = 0
        write_backbone(scratch / "backbone")
        rng = np.random.default_rng(0)
        rows = []
        for number in range(100):
            words = list(rng.choice(WORDS, rng.integers(1, 12)))
            labels = {w for w in words if w in LABELS}
            rows.append([" ".join(words), ";".join(sorted(labels)), str(number % 75)])
        with (scratch / "reports.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "labels", "patient"], *rows])

    def run(self, folder: Path | None = None, **changes: dict) -> "Run":
        """A new run, in a folder of its own; changes are section={field: value}."""
        self.runs += 1
        return Run(self, folder or self.scratch / f"run{self.runs}", changes)

    @functools.cache  # noqa: B019
    def undisturbed(self, entropy: int) -> dict[str, bytes]:
        """What a run with that secret must end with."""
        run = self.run()
        status, output = run.wait(run.start(entropy))
        assert status == FINISHED, output
        return run.results()

    @functools.cached_property
    def seconds(self) -> float:
        """How long a run takes once everything is compiled."""
        self.undisturbed(1)
        begin = time.monotonic()
        self.undisturbed(2)
        return time.monotonic() - begin


class Run:
    """One run directory and the processes that work on it."""

    def __init__(self, lab: Lab, folder: Path, changes: dict[str, dict]):
        self.lab, self.folder = lab, folder
        self.path = folder / "run"
        self.private = self.path / "private"
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.config = self.configured(changes)

    def configured(self, changes: dict[str, dict]) -> Config:
        """The settings of this lab, with some changed."""
        own = {
            "data": {"root": str(self.lab.scratch / "reports.csv")},
            "model": {"backbone": str(self.lab.scratch / "backbone")},
            "privacy": {
                "ledger": str(self.ledger.path),
                "total_budget": 2.0,
                "secure_noise": self.lab.secure_noise,
            },
            "run": {"dir": str(self.folder)},
        }
        parts = (SETTINGS, own, self.lab.changes, changes)
        sections = set().union(*parts)
        return Config.from_dict(
            {s: functools.reduce(lambda a, p: a | p.get(s, {}), parts, {}) for s in sections}
        )

    def start(
        self,
        entropy: int,
        before: Callable[[], None] = lambda: None,
        changes: dict[str, dict] | None = None,
    ) -> tuple[int, int]:
        """(process id, pipe) of a fork that trains, or goes on training.

        Args:
            entropy: stands for what the operating system would give as entropy.
            before: called in the fork first.
            changes: settings that differ from those of the run, this once.
        """
        read, write = os.pipe()
        pid = os.fork()
        if pid:
            os.close(write)
            return pid, read
        status = CRASHED
        try:
            os.dup2(write, 1)
            os.dup2(write, 2)
            os.urandom = lambda size: bytes([entropy]) * size
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_compilation_cache_dir", self.lab.compiled)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            config = self.configured(changes) if changes else self.config
            monitor = Monitor(Console(file=io.StringIO()))
            before()
            train(config, resume=True, interrupt=Interrupt(), monitor=monitor)
            status = FINISHED
        except USER_ERRORS as error:
            print(f"error: {error}")
            status = REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    @staticmethod
    def wait(child: tuple[int, int]) -> tuple[int, str]:
        """(exit status, or minus the signal; what it printed)."""
        with open(child[1], errors="replace") as pipe:
            output = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]), output

    def killed(self, child: tuple[int, int], after: float | None) -> bool:
        """Kills it after some seconds, if not None; whether it was still running."""
        if after is not None:
            time.sleep(after)
            os.kill(child[0], signal.SIGKILL)
        status, output = self.wait(child)
        assert status in (FINISHED, -signal.SIGKILL), output
        return status != FINISHED

    def finish(self, entropy: int = 2) -> None:
        """Goes on to the end, and checks that nothing shows what happened before."""
        status, output = self.wait(self.start(entropy))
        assert status == FINISHED, output
        self.check_end()

    def refuse(self, words: str, entropy: int = 2, **kwargs) -> None:
        """The run must stop with one line that holds `words`."""
        status, output = self.wait(self.start(entropy, **kwargs))
        assert status == REFUSED and words in output and output.count("\n") == 1, output

    def secret(self) -> str | None:
        file = self.private / "secret.json"
        return json.loads(file.read_text())["secret"] if file.exists() else None

    def results(self) -> dict[str, bytes]:
        """Every file that a finished run shows, byte for byte."""
        files = [self.path / "metrics.json", *(self.path / "release").rglob("*")]
        return {str(f.relative_to(self.path)): f.read_bytes() for f in files if f.is_file()}

    def check_meanwhile(self) -> None:
        """Whatever a broken run has saved is in the ledger, in full."""
        if any((self.private / "checkpoints").glob("[0-9]*")):
            self.check_ledger()

    def check_ledger(self) -> None:
        (runs,) = self.ledger.runs().values()
        (mechanisms,) = runs.values()
        assert mechanisms == plan_run(self.config).mechanisms(), "the ledger lost steps"

    def check_end(self) -> None:
        entropy = bytes.fromhex(self.secret())[0]
        found, expected = self.results(), self.lab.undisturbed(entropy)
        assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
        for name, content in expected.items():
            assert found[name] == content, f"{name} differs from the undisturbed run's"
        self.check_ledger()
        extra = {p.name for p in self.path.iterdir()} - {"config.json", "metrics.json", "private"}
        assert extra == {"release"}, f"left over: {sorted(extra)}"

    @contextlib.contextmanager
    def restored_after(self) -> Iterator[None]:
        """Puts the folder back as it was."""
        copy = self.folder.with_name(self.folder.name + ".copy")
        shutil.copytree(self.folder, copy)
        yield
        shutil.rmtree(self.folder)
        copy.rename(self.folder)


def kill_at(folder: Path, condition: Callable[[int, str], bool], report: bool = False):
    """For `before`: SIGKILL before the first operation on files below `folder` that fulfils the
    condition, given its number and the file's name; `report` prints how many there were."""
    count = 0

    def hook(event: str, args) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = args
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            # A rename makes its second argument.
            path = args[1] if event == "os.rename" else args[0]
        else:
            return
        if not isinstance(path, str | Path) or not str(path).startswith(str(folder)):
            return
        if condition(count, Path(path).name):
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def before():
        sys.addaudithook(hook)
        if report:
            exit_at_once = os._exit

            def report_and_exit(status):
                os.write(1, b"%d operations" % count)
                exit_at_once(status)

            os._exit = report_and_exit

    return before
