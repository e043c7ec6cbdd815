# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or absent, checked when read, and enough to continue bit for bit."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from .mesh import put
from .rundir import write_whole
from .step import TrainState


class Position(NamedTuple):
    """How far a run is."""

    stage: int
    """Index of the stage that is running, or was last."""
    step: int
    """Steps of it that are done."""


class DamagedCheckpoint(Exception):
    """A checkpoint is not what was saved."""

    def __init__(self, position: Position):
        self.position = position
        super().__init__(f"the checkpoint of stage {position.stage} step {position.step}")


class Checkpoints:
    """One file for each saved state, under private/.

    Guarantee: a file appears whole (fsync, then rename) or not at all, and `restore` gives what was
    saved, bit for bit, or fails: the file carries a hash of position, names, types and values. A
    crash while saving leaves the previous checkpoint in force; the steps after it are then repeated
    with the same units and the same noise, so nothing is released twice with different noise.

    Args:
        directory: created if missing.
        keep: how many of the newest to keep.
    """

    def __init__(self, directory: Path, keep: int):
        self._directory = directory
        self._keep = keep
        directory.mkdir(parents=True, exist_ok=True)

    def save(self, position: Position, state: TrainState) -> None:
        """Writes the state of `position`; OSError if there is no room, and nothing is lost then."""
        tensors = _tensors(state)
        content = safetensors.numpy.save(tensors, {"blake2b": _digest(position, tensors)})
        write_whole(self._path(position), content)
        for old in self._positions()[: -self._keep]:
            self._path(old).unlink()

    def latest(self) -> Position | None:
        """The newest checkpoint's position; None if there is none."""
        return max(self._positions(), default=None)

    def furthest(self) -> Position | None:
        """As `latest`, but counting those that were set aside: how far the run ever got."""
        return max(self._positions("*"), default=None)

    def restore(self, position: Position, like: TrainState) -> TrainState:
        """The state saved at `position`; `like` gives structure, shapes, dtypes, devices.

        Raises: see `read`.
        """
        return self.rebuild(self.read(position, like), like)

    def read(self, position: Position, like: TrainState) -> list[np.ndarray]:
        """`values` of the state saved at `position`, which is one like `like`.

        Raises:
            DamagedCheckpoint: the file does not hold such a state, whole and unchanged.
        """
        try:
            with safetensors.safe_open(self._path(position), framework="numpy") as file:
                claimed = (file.metadata() or {}).get("blake2b")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except safetensors.SafetensorError:
            raise DamagedCheckpoint(position) from None
        expected = {name: (leaf.dtype, leaf.shape) for name, leaf in _tensors(like).items()}
        found = {name: (value.dtype, value.shape) for name, value in tensors.items()}
        if found != expected or claimed != _digest(position, tensors):
            raise DamagedCheckpoint(position)
        return [tensors[name] for name in expected]

    @staticmethod
    def values(state: TrainState) -> list[np.ndarray]:
        """What a checkpoint keeps of a state."""
        return list(_tensors(state).values())

    @staticmethod
    def rebuild(values: list[np.ndarray], like: TrainState) -> TrainState:
        """The state of these `values`."""
        leaves, treedef = jax.tree.flatten(like)
        placed = [_leaf(value, leaf) for value, leaf in zip(values, leaves, strict=True)]
        return jax.tree.unflatten(treedef, placed)

    def set_aside(self, position: Position) -> None:
        """Renames a damaged checkpoint, so that the one before it is the latest."""
        path = self._path(position)
        path.rename(path.with_suffix(".damaged"))

    def _path(self, position: Position) -> Path:
        return self._directory / f"{position.stage}-{position.step}.safetensors"

    def _positions(self, suffix: str = "safetensors") -> list[Position]:
        """Ascending."""
        names = (path.stem.split("-") for path in self._directory.glob(f"[0-9]*-*.{suffix}"))
        return sorted(Position(int(stage), int(step)) for stage, step in names)


def _tensors(state: TrainState) -> dict[str, np.ndarray]:
    """Numbered names, in the order of the tree -> values; of a PRNG key its words."""
    leaves = [
        jax.random.key_data(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for leaf in jax.tree.leaves(state)
    ]
    return {f"{i:06d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def _leaf(value: np.ndarray, like: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(like))
    return put(value, like.sharding)


def _digest(position: Position, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(repr(tuple(position)).encode(), digest_size=32)
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
