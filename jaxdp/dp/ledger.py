# SPDX-License-Identifier: Apache-2.0
"""What has been run on which data: an append-only file, written before anything is released."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import math
import os
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from .accounting import TooLittleNoise, epsilon_pld
from .mechanism import SubsampledGaussian

Mechanisms = Mapping[str, SubsampledGaussian]
"""Stage name -> mechanism."""


class LedgerError(ValueError):
    """The ledger cannot be trusted, or an entry would contradict it or overdraw the budget."""


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A record of mechanisms per data set, in `path`, with its secret key in `path`.key.

    Guarantee: once `plan` has returned, the entry survives a crash or power loss (fsync), and
    counts as if all planned steps were taken until `give_up` says that fewer were; so no budget
    entry is lost. Entries are chained by a keyed hash: a changed, reordered or removed one is
    noticed, unless it is the last. A last line cut short by a crash is dropped: its `plan` had not
    returned. Processes take turns (flock, so not on every network file system). Clocks play no
    role.

    Runs compose if their data have the same fingerprint. Data sets that merely overlap have
    different ones: adding those up is left to people.
    """

    path: Path

    def fingerprint(self, records: Iterable[bytes]) -> str:
        """A keyed hash (BLAKE2b) of the records as a multiset: their order does not matter.

        Without the key file it reveals nothing, not even to someone who guesses all of the data.
        """
        with self._open() as (_, key):
            digests = sorted(hashlib.blake2b(r, key=key).digest() for r in records)
            return hashlib.blake2b(b"".join(digests), key=key, digest_size=16).hexdigest()

    def runs(self) -> dict[str, dict[str, Mechanisms]]:
        """Fingerprint -> run id -> its mechanisms, as given up or else as planned, oldest first.

        Raises:
            LedgerError: the file was changed, or its key is missing.
        """
        with self._open() as (file, key):
            return self._read(file, key)[0]

    def epsilon(self, fingerprint: str, delta: float) -> float:
        """Epsilon at `delta` of everything recorded for this data (add/remove one unit)."""
        return _total(self.runs().get(fingerprint, {}), delta)

    def plan(
        self,
        fingerprint: str,
        run: str,
        mechanisms: Mechanisms,
        *,
        total_budget: tuple[float, float] | None = None,
    ) -> None:
        """Records a run before its first step; a resumed run plans again, which changes nothing.

        Args:
            fingerprint: of the data, see `fingerprint`.
            run: id of the run, unique in the ledger.
            mechanisms: with ALL planned steps.
            total_budget: (epsilon, delta) that everything on this data must stay within.

        Raises:
            LedgerError: the run is recorded with other mechanisms, or would overdraw the budget;
                nothing is written then.
        """
        with self._open() as (file, key):
            data, check = self._read(file, key)
            runs = data.get(fingerprint, {})
            if run in runs and not _part_of(runs[run], mechanisms):
                raise LedgerError(f"run {run} is in {self.path} with other mechanisms")
            if total_budget is not None:
                budget, delta = total_budget
                total = _total({**runs, run: mechanisms}, delta)
                if total > budget:
                    raise LedgerError(
                        f"this run would bring the total on this data to epsilon {total:.4g} at "
                        f"delta {delta:g}, over the total budget of {budget:g}"
                    )
            if runs.get(run) != dict(mechanisms):
                _append(file, key, check, fingerprint, run, mechanisms)

    def give_up(self, fingerprint: str, run: str, mechanisms: Mechanisms) -> None:
        """Records that a planned run is over for good, after the steps in `mechanisms`.

        Raises:
            LedgerError: the run is not planned, or not with at least these steps.
        """
        with self._open() as (file, key):
            data, check = self._read(file, key)
            runs = data.get(fingerprint, {})
            if run not in runs or not _part_of(mechanisms, runs[run]):
                raise LedgerError(f"run {run} is not in {self.path} with at least these steps")
            _append(file, key, check, fingerprint, run, mechanisms)

    @contextlib.contextmanager
    def _open(self) -> Generator[tuple[BinaryIO, bytes]]:
        """The locked file and the key, which is made at first use."""
        folder = self.path.parent
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        key_path = self.path.with_name(self.path.name + ".key")
        # Unbuffered: what was not written must not be written later, when closing.
        with open(self.path, "a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            empty = not file.seek(0, os.SEEK_END)
            if not key_path.exists():
                if not empty:
                    raise LedgerError(f"{key_path} is missing: the ledger cannot be checked")
                new = key_path.with_name(key_path.name + ".new")
                with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                    out.write(os.urandom(32))
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(new, key_path)
            if empty:
                # Names must last as well as contents: the ledger's own, the key's, new folders'.
                # Whoever made them may have been stopped before this.
                for named_in in (folder, *(each.parent for each in made)):
                    descriptor = os.open(named_in, os.O_RDONLY)
                    os.fsync(descriptor)
                    os.close(descriptor)
            key = key_path.read_bytes()
            if len(key) != 32:
                raise LedgerError(f"{key_path} is damaged: the ledger cannot be checked")
            yield file, key

    def _read(self, file: BinaryIO, key: bytes) -> tuple[dict[str, dict[str, Mechanisms]], str]:
        """(as `runs`, check of the last entry); cuts off a torn last line."""
        file.seek(0)
        data, check, whole = {}, "", 0
        for number, line in enumerate(io.BytesIO(file.read()), start=1):
            # The last byte is the newline, or was before something changed it.
            claimed, _, body = line[:-1].decode(errors="replace").partition(" ")
            expected = _check(key, check, body)
            if claimed != expected and not line.endswith(b"\n"):
                file.truncate(whole)
                break
            whole, check = whole + len(line), expected
            if claimed != expected or not line.endswith(b"\n"):
                raise LedgerError(f"{self.path}: line {number} is not what was written there")
            entry = json.loads(body)
            data.setdefault(entry["data"], {})[entry["run"]] = {
                name: SubsampledGaussian(**fields) for name, fields in entry["mechanisms"].items()
            }
        return data, check


def _append(file, key, check, fingerprint, run, mechanisms) -> None:
    stages = {name: dataclasses.asdict(m) for name, m in mechanisms.items()}
    body = json.dumps({"data": fingerprint, "run": run, "mechanisms": stages})
    line = f"{_check(key, check, body)} {body}\n".encode()
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


def _check(key: bytes, previous: str, body: str) -> str:
    return hashlib.blake2b(f"{previous} {body}".encode(), key=key, digest_size=16).hexdigest()


def _total(runs: Mapping[str, Mechanisms], delta: float) -> float:
    try:
        return epsilon_pld([m for stages in runs.values() for m in stages.values()], delta)
    except TooLittleNoise:  # together: each may well have had enough
        return math.inf


def _part_of(taken: Mechanisms, planned: Mechanisms) -> bool:
    """Whether `taken` is `planned` stopped early: the same mechanisms, no more steps of any."""
    return all(
        name in planned
        and m.steps <= planned[name].steps
        and m.replace(steps=0) == planned[name].replace(steps=0)
        for name, m in taken.items()
    )
