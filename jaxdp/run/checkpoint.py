# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or absent, checked when read, and enough to continue bit for bit."""

import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdp.files import sync, sync_tree, write_whole
from jaxdp.training.mesh import put
from jaxdp.training.step import TrainState

from . import processes
from .directory import RunError

_DIGEST = "blake2b"  # file in each checkpoint: hash of the rest of it
_DAMAGED = ".damaged"


class Position(NamedTuple):
    """How far a run is."""

    stage: int  # index of the stage that is running, or was last
    step: int  # steps of it that are done


class Checkpoints:
    """One folder for each saved state, in Orbax's format, under private/.

    Guarantee: a checkpoint appears whole or not at all, also through a power loss, and `restore`
    gives what was saved, bit for bit, or fails: beside the arrays there is a hash of their position
    and of every file, written last, since Orbax gives changed bytes back without noticing. A
    crash while saving leaves the previous checkpoint in force; the steps after it are then repeated
    with the same units and the same noise, so nothing is released twice with different noise.

    Orbax's manager is not used: it returns without an error where a step is there already, and
    deletes the old checkpoint before the new one is on disk.

    Several processes call every method together, and get or raise the same. Process 0 alone reads
    and writes: each holds the whole state, so nothing has to be gathered.

    Args:
        directory: created if missing; None on every process but the first.
        keep: how many of the newest to keep.
        damaged: told of each that `latest` sets aside.
    """

    def __init__(
        self,
        directory: Path | None,
        keep: int,
        damaged: Callable[[Position], None] = lambda position: None,
    ):
        self._keep, self._damaged = keep, damaged
        processes.first(lambda: self._open(directory))

    def _open(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory.resolve()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="checkpoints"
        )
        self._orbax = ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
            multiprocessing_options=alone,
        )

    def save(self, position: Position, state: TrainState) -> None:
        """Writes the state of `position`; OSError if there is no room, and nothing is lost then."""
        processes.first(lambda: self._save(position, state))

    def _save(self, position: Position, state: TrainState) -> None:
        path = self._path(position)
        shutil.rmtree(path, ignore_errors=True)  # what a crash may have left
        tensors = {name: value for name, value in _tensors(state).items() if value.size}
        try:
            self._require_room(tensors)
            self._orbax.save(path, tensors)
            sync_tree(path)
            sync(self._directory)
            write_whole(path / _DIGEST, _digest(position, path).encode())
        except Exception as error:  # Orbax's are of any type, and long
            for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES):
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(path)) from None
            raise
        kept = {self._path(p) for p in _positions(self._directory)[-self._keep :]}
        for other in set(self._directory.iterdir()) - kept:
            if other.is_dir() and other.suffix != _DAMAGED:
                shutil.rmtree(other)

    def _require_room(self, tensors: dict[str, np.ndarray]) -> None:
        """OSError if there is none: from within, Orbax would fill the terminal about it."""
        files = 16_384 * (len(tensors) + 16)  # at least one for each array, in blocks
        room = 2 * sum(value.nbytes for value in tensors.values()) + files
        if hasattr(os, "posix_fallocate"):
            with tempfile.TemporaryFile(dir=self._directory) as file:
                os.posix_fallocate(file.fileno(), 0, room)

    def latest(self) -> Position | None:
        """The newest checkpoint's position; None if there is none. Those that are damaged are
        renamed first: the one before leads to the same result."""
        found = processes.first(self._latest)
        (position,) = processes.from_first([np.array(found or (-1, -1))])
        return None if position[0] < 0 else Position(*position.tolist())

    def _latest(self) -> Position | None:
        for position in reversed(_positions(self._directory)):
            if self._sound(position):
                return position
            path = self._path(position)
            shutil.rmtree(path.with_suffix(_DAMAGED), ignore_errors=True)
            path.rename(path.with_suffix(_DAMAGED))
            self._damaged(position)
        return None

    def _sound(self, position: Position) -> bool:
        """Whether its files are what was saved."""
        path = self._path(position)
        try:
            return (path / _DIGEST).read_text() == _digest(position, path)
        except (FileNotFoundError, ValueError):
            return False

    def restore(self, position: Position, like: TrainState) -> TrainState:
        """The state saved at `position`; `like` gives structure, shapes, dtypes, devices.

        Raises:
            RunError: the folder does not hold such a state, whole and unchanged.
        """
        found = processes.first(lambda: self._read(position, like))
        values = processes.from_first(found or list(_tensors(like).values()))
        leaves, treedef = jax.tree.flatten(like)
        return jax.tree.unflatten(treedef, map(_leaf, values, leaves))

    def _read(self, position: Position, like: TrainState) -> list[np.ndarray]:
        """The arrays of the state."""
        path, wanted = self._path(position), _tensors(like)
        if not self._sound(position):
            raise RunError(f"{path} is damaged; resume once more, from the one before")
        found = self._orbax.restore(path)
        found |= {name: value for name, value in wanted.items() if not value.size}
        if _types(found) != _types(wanted):
            raise RunError(f"{path} is of another kind; resume with the version that saved it")
        return [np.asarray(found[name]) for name in wanted]

    def _path(self, position: Position) -> Path:
        return self._directory / f"{position.stage}-{position.step}"


def furthest(directory: Path) -> Position | None:
    """How far a run ever got by its checkpoints, damaged ones included; None if it has none."""
    return max(_positions(directory, damaged=True), default=None)


def _positions(directory: Path, damaged: bool = False) -> list[Position]:
    """Ascending; with `damaged`, also those that were set aside or lack their hash."""
    names = (re.fullmatch(r"(\d+)-(\d+)(\.damaged)?", p.name) for p in directory.glob("*"))
    return sorted(
        Position(int(name[1]), int(name[2]))
        for name in names
        if name and (damaged or (directory / name[0] / _DIGEST).exists() and not name[3])
    )


def _tensors(state: TrainState) -> dict[str, np.ndarray]:
    """Numbered names, in the order of the tree -> values; of a PRNG key its words."""
    leaves = [
        jax.random.key_data(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for leaf in jax.tree.leaves(state)
    ]
    return {f"{i:06d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def _types(tensors: dict[str, np.ndarray]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {name: (value.dtype, value.shape) for name, value in tensors.items()}


def _leaf(value: np.ndarray, like: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(like))
    return put(value, like.sharding)


def _digest(position: Position, path: Path) -> str:
    digest = hashlib.blake2b(repr(tuple(position)).encode(), digest_size=32)
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != _DIGEST:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(path)} {len(content)} ".encode() + content)
    return digest.hexdigest()
