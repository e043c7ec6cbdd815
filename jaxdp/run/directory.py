# SPDX-License-Identifier: Apache-2.0
"""The run directory: what may leave (release/), what must not (private/), and who writes."""

import fcntl
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxdp.config import Config
from jaxdp.files import write_json
from jaxdp.training.randomness import RunSecret

SECRET = "secret.json"  # under private/, of a run and of a sweep
# Settings that change neither mechanism nor, but for rounding, result: they may differ on resume.
_HARMLESS = {
    "data": {"cache"},
    "model": {"shard_frozen"},
    "run": {"dir", "checkpoint_every", "keep_checkpoints", "eval_every", "devices"},
}


class RunError(RuntimeError):
    """A run directory that cannot be used; the message says what to do."""


def stored_config(run: Path) -> Config:
    """What the run in that folder was started with, with run.dir and run.name as they are now: the
    folder may have been moved.

    Raises:
        RunError: no run is there, or its config.json cannot be used.
    """
    file = run / "config.json"
    try:
        config = Config.of_run(json.loads(file.read_text(encoding="utf-8")))
        place = run.resolve()
        return config.below(place.parent, place.name)
    except FileNotFoundError:
        raise RunError(f"{file} is missing: no run was started there, or it is damaged") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is damaged, or of another version: {error}") from None


def require_same(run: Path, started: Config, now: Config) -> None:
    """RunError, naming the fields, if settings differ in more than where and how often to save."""
    before, after = started.to_dict(), now.to_dict()
    changed = [
        f"config.{section}.{field} = {value!r}"
        for section, fields in before.items()
        for field, value in fields.items()
        if field not in _HARMLESS.get(section, ()) and after[section][field] != value
    ]
    if changed:
        raise RunError(
            f"{run} was started with other settings; it can only be resumed with the same "
            + ", ".join(changed)
        )


class RunDirectory:
    """Paths of one run, held under an exclusive lock until `close` or the end of the process.

    A run has started once its secret is on disk, see `start`; before, nothing has been done with
    its reports, and it starts afresh, with any settings.

    Args:
        config: decides where the directory is.
        resume: continue a run that has started; otherwise it must not have.

    Raises:
        RunError: the directory is in use, exists without `resume`, or was started with settings
            that differ in more than where and how often to save.
    """

    def __init__(self, config: Config, *, resume: bool):
        self.path = config.path
        self.private = self.path / "private"
        self.release = self.path / "release"
        self.checkpoints = self.private / "checkpoints"
        self._secret_file = self.private / SECRET
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
            self._begin_or_go_on(config, resume)
        except BlockingIOError:
            self.close()
            raise RunError(f"{self.path} is in use by another process") from None
        except RunError:
            self.close()
            raise

    def _begin_or_go_on(self, config: Config, resume: bool) -> None:
        if not self.started:
            if any(self.checkpoints.glob("*")):
                self.require_started()
            if not self.finished:  # what is finished is left alone, also without private/
                write_json(self.path / "config.json", config.to_dict())
            return
        if not resume:
            raise RunError(
                f"{self.path} holds a run already; continue it with --resume, or choose another "
                "config.run.name"
            )
        require_same(self.path, stored_config(self.path), config)

    @property
    def started(self) -> bool:
        return self._secret_file.exists()

    def require_started(self) -> None:
        """RunError unless it has; to be asked where something of it was saved."""
        if not self.started:
            raise RunError(f"{self._secret_file} is missing; the run cannot be continued")

    @property
    def finished(self) -> bool:
        """Whether the release bundle is complete: metrics.json is written after it."""
        return (self.path / "metrics.json").exists()

    def secret(self, new: RunSecret, records: Iterable[bytes]) -> RunSecret:
        """The secret that the run was started with, or else `new`, for `start`.

        Args:
            new: its sampling root must be that of a run that was started.
            records: what the run trains on. On other records, the noise must not be used again.

        Raises:
            RunError: records or sampling root are not those of its start, or the file is damaged.
        """
        if not self.started:
            self._new = {"secret": new.root.hex(), "data": new.fingerprint(records)}
            if new.sampling_root is not None:
                self._new["sampling"] = new.sampling_root.hex()
            return new
        secret, content = read_secret(self.private)
        if secret.sampling_root != new.sampling_root:
            raise RunError(
                f"{self.path} was started with other samples: resume a member of a sweep with "
                "jaxdp sweep, on its own directory"
            )
        if content.get("data") != secret.fingerprint(records):
            raise RunError(
                f"{self.path} was started on other training reports (or {self._secret_file} is "
                "damaged); resume it with the same data, or choose another config.run.name"
            )
        return secret

    def start(self, begins_with: Mapping[str, Any]) -> bool:
        """Keeps a new secret: False if the run had started before.

        Being on disk before a ledger and any checkpoint, it lets a run that lost all its
        checkpoints start again with the same samples and noise: one run, counted once.

        Args:
            begins_with: JSON-ready, by what people call it: all that the same settings do not fix.

        Raises:
            RunError: the run had started with something else.
        """
        if not self.started:
            write_json(self._secret_file, self._new | {"begins_with": begins_with})
            return True
        before = read_secret(self.private)[1].get("begins_with", {})
        if others := [name for name, value in begins_with.items() if before.get(name) != value]:
            raise RunError(
                f"{self.path} was started with other {' and '.join(others)}; resume it with the "
                "versions and the backbone that it was started with"
            )
        return False

    def unstart(self) -> None:
        """The run was refused: it has not started after all."""
        self._secret_file.unlink()

    def close(self) -> None:
        self._lock.close()


def read_secret(private: Path) -> tuple[RunSecret, dict[str, Any]]:
    """(the secret of a private folder, all that its file holds); RunError if missing or damaged."""
    file = private / SECRET
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        shared = content.get("sampling")
        roots = [bytes.fromhex(content["secret"])]
        roots += [] if shared is None else [bytes.fromhex(shared)]
        if any(len(root) != 32 for root in roots):
            raise ValueError
        return RunSecret(*roots), content
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError):
        raise RunError(f"{file} is missing or damaged; nothing can be continued with it") from None
