# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: atomic, few, and enough to continue bit for bit."""

from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from .randomness import RunSecret
from .step import TrainState


class Position(NamedTuple):
    """How far a run is."""

    stage: int
    """Index of the stage that is running, or was last."""
    step: int
    """Steps of it that are done."""


class Checkpoints:
    """Saves and restores (position, state, secret) under private/.

    Guarantee: a restored state is one that was saved whole; a crash while saving leaves the
    previous checkpoint in force. Steps after it are then repeated with the same units and the same
    noise, so nothing is released twice with different noise.

    Args:
        directory: created if missing.
        keep: how many of the newest to keep.
    """

    def __init__(self, directory: Path, keep: int):
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=False, create=True
            ),
        )

    def save(self, position: Position, state: TrainState, secret: RunSecret) -> None:
        """Writes the state of `position`; saving a position again is a no-op."""
        index = self._index(position)
        if index in self._manager.all_steps():
            return
        meta = {"stage": position.stage, "step": position.step, "secret": secret.root.hex()}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        # save() says False, silently, when it did not write.
        if not self._manager.save(index, args=args):
            raise RuntimeError(
                f"checkpoint of stage {position.stage} step {position.step} not written"
            )

    def latest(self) -> tuple[Position, RunSecret] | None:
        """The newest checkpoint's position and the run's secret; None if there is none."""
        index = self._manager.latest_step()
        if index is None:
            return None
        meta = self._manager.restore(
            index, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
        ).meta
        return Position(meta["stage"], meta["step"]), RunSecret(bytes.fromhex(meta["secret"]))

    def restore(self, position: Position, like: TrainState) -> TrainState:
        """The state saved at `position`; `like` gives structure, shapes and dtypes."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(
            self._index(position),
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)),
        ).state

    def close(self) -> None:
        self._manager.close()

    @staticmethod
    def _index(position: Position) -> int:
        # Orbax numbers checkpoints by one integer; stages come first in it.
        return position.stage * 10**9 + position.step
