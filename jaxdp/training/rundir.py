# SPDX-License-Identifier: Apache-2.0
"""The run directory: what may leave (release/), what must not (private/), and who writes."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxdp.config import Config

# Settings that change neither the mechanism nor the result, and may differ on resume.
_HARMLESS = {
    ("run", "dir"),
    ("run", "checkpoint_every"),
    ("run", "keep_checkpoints"),
    ("run", "eval_every"),
}


class RunError(RuntimeError):
    """A run directory that cannot be used; the message says what to do."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes atomically: a reader sees the old file or the whole new one."""
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


class RunDirectory:
    """Paths of one run, held under an exclusive lock until `close` or the end of the process.

    Args:
        config: decides where the directory is.
        resume: continue a run that was started before; otherwise no step may have been saved.

    Raises:
        RunError: the directory is in use, exists without `resume`, or was started with settings
            that differ in more than where and how often to save.
    """

    def __init__(self, config: Config, *, resume: bool):
        self.path = Path(config.run.dir) / config.run.name
        self.private = self.path / "private"
        self.release = self.path / "release"
        self.checkpoints = self.private / "checkpoints"
        config_file = self.path / "config.json"

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.private.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"config.run.dir: {self.path} cannot be made: {error.strerror}"
            ) from None
        self._lock = (self.private / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise RunError(f"{self.path} is in use by another process") from None
        # Before its first checkpoint a run has touched nothing private: it starts afresh.
        if not any(self.checkpoints.glob("*")):
            write_json(config_file, config.to_dict())
            return
        if not resume:
            self.close()
            raise RunError(
                f"{self.path} holds a run already; continue it with --resume, or choose another "
                "config.run.name"
            )
        started = Config.from_dict(json.loads(config_file.read_text(encoding="utf-8")))
        changed = _differences(started, config)
        if changed:
            self.close()
            raise RunError(
                f"{self.path} was started with other settings; it can only be resumed with the "
                "same " + ", ".join(f"config.{name} = {value!r}" for name, value in changed)
            )

    @property
    def finished(self) -> bool:
        """Whether the release bundle is complete: metrics.json is written after it."""
        return (self.path / "metrics.json").exists()

    def close(self) -> None:
        self._lock.close()


def _differences(started: Config, now: Config) -> list[tuple[str, Any]]:
    """(field, value it was started with) of every setting that must not have changed."""
    before, after = started.to_dict(), now.to_dict()
    return [
        (f"{section}.{field}", value)
        for section, fields in before.items()
        for field, value in fields.items()
        if (section, field) not in _HARMLESS and after[section][field] != value
    ]
